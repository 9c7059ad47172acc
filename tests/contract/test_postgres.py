"""The store contract, held by the store on PostgreSQL."""

from collections.abc import Sequence

import pytest

from asyncsched.stores.postgres import PostgresStore
from asyncsched.testing.contract import StoreContract
from tests.servers.running import Servers


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if "postgres" not in stores:
            pytest.skip("postgres was left out by --stores")
        self.url = servers.url("postgres")

    def make_store(self, namespace: str) -> PostgresStore:
        return PostgresStore(self.url, namespace=namespace)
