"""The store contract, held by the store on DocumentDB, or on the MongoDB that is named for the tests."""

from collections.abc import Sequence

import pytest

from asyncsched.stores.mongodb import MongoStore
from asyncsched.testing.contract import StoreContract
from tests.servers.running import Servers


class TestMongoStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if "mongodb" not in stores:
            pytest.skip("mongodb was left out by --stores")
        self.url = servers.url("mongodb")

    def make_store(self, namespace: str) -> MongoStore:
        return MongoStore(self.url, namespace=namespace)
