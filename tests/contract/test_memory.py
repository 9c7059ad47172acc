"""The store contract, held by the store in memory."""

from collections.abc import Sequence

import pytest

from asyncsched.stores.memory import MemoryStore
from asyncsched.testing.contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str]) -> None:
        if "memory" not in stores:
            pytest.skip("memory was left out by --stores")
        self.namespaces: dict[str, MemoryStore] = {}

    def make_store(self, namespace: str) -> MemoryStore:
        return self.namespaces.setdefault(namespace, MemoryStore())
