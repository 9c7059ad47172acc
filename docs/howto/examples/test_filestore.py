from pathlib import Path

import pytest
from filestore import FileStore

from asyncsched.testing import StoreContract


class TestFileStore(StoreContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def make_store(self, namespace: str) -> FileStore:
        return FileStore(self.path, namespace)
