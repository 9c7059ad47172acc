"""The store contract, held by the store on Firestore."""

from collections.abc import Sequence

import pytest

from asyncsched.stores import store_from_url
from asyncsched.stores.firestore import FirestoreStore
from asyncsched.testing import StoreContract
from tests.servers.running import Servers


class TestFirestoreStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if "firestore" not in stores:
            pytest.skip("firestore was left out by --stores")
        self.url = servers.url("firestore")

    def make_store(self, namespace: str) -> FirestoreStore:
        store = store_from_url(f"{self.url}&namespace={namespace}&timeout=60")
        assert isinstance(store, FirestoreStore)
        return store

    async def drop_namespace(self, namespace: str) -> None:
        store = self.make_store(namespace)
        await store.open()
        try:
            await store.erase()
        finally:
            await store.close()
