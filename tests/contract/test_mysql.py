"""The store contract, held by the store on MariaDB and on MySQL."""

from collections.abc import Sequence

import pytest

from asyncsched.stores.mysql import MySQLStore
from asyncsched.testing.contract import StoreContract
from tests.servers.running import Servers


class _OnServer(StoreContract):
    kind: str

    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if self.kind not in stores:
            pytest.skip(f"{self.kind} was left out by --stores")
        self.url = servers.url(self.kind)

    def make_store(self, namespace: str) -> MySQLStore:
        return MySQLStore.from_url(f"{self.url}?namespace={namespace}")


class TestMariaDB(_OnServer):
    kind = "mariadb"


class TestMySQL(_OnServer):
    kind = "mysql"
