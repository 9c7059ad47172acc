"""The store contract, held by the store on etcd."""

from collections.abc import Sequence

import pytest

from asyncsched.stores.etcd import EtcdStore
from asyncsched.testing import StoreContract
from tests.servers.running import Servers


class TestEtcdStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if "etcd" not in stores:
            pytest.skip("etcd was left out by --stores")
        self.url = servers.url("etcd")

    def make_store(self, namespace: str) -> EtcdStore:
        return EtcdStore(self.url, namespace=namespace)

    async def drop_namespace(self, namespace: str) -> None:
        store = EtcdStore(self.url, namespace=namespace)
        await store.open(now=lambda: 0.0)
        await store.erase()
        await store.close()
