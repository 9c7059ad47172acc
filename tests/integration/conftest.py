"""A store that outlives the processes which use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.running import Servers
from tests.support.stores import url_of


@pytest.fixture
def url(store_kind: str, tmp_path: Path, servers: Servers) -> str:
    """A durable store of each chosen kind, with nothing in it."""
    if store_kind == "memory":
        pytest.skip("what is in memory does not outlive its process")
    return url_of(store_kind, tmp_path, servers)
