"""The store contract, held by the store on SQLite."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncsched.stores.sqlite import SQLiteStore
from asyncsched.testing.contract import StoreContract


class TestSQLiteStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], tmp_path: Path) -> None:
        if "sqlite" not in stores:
            pytest.skip("sqlite was left out by --stores")
        self.folder = tmp_path

    def make_store(self, namespace: str) -> SQLiteStore:
        return SQLiteStore(f"{self.folder}/{namespace}.db")
