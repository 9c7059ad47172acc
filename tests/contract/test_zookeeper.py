"""The store contract, held by the store on ZooKeeper."""

from collections.abc import Sequence

import pytest

from asyncsched.stores.zookeeper import ZooKeeperStore
from asyncsched.testing import StoreContract
from tests.servers.running import Servers


class TestZooKeeperStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if "zookeeper" not in stores:
            pytest.skip("zookeeper was left out by --stores")
        self.url = servers.url("zookeeper")

    def make_store(self, namespace: str) -> ZooKeeperStore:
        return ZooKeeperStore(self.url, namespace=namespace)

    async def drop_namespace(self, namespace: str) -> None:
        store = self.make_store(namespace)
        await store.open()
        await store.erase()
        await store.close()
