"""Servers that a test may harm."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence

import pytest

from tests.servers.firestore import FrontedFirestoreServer
from tests.servers.redis import RedisServer
from tests.servers.running import SERVERS, url_given_for
from tests.servers.server import CannotStart, Server
from tests.support.stores import namespaced


@pytest.fixture(scope="session", params=SERVERS)
def own_server(request: pytest.FixtureRequest, stores: Sequence[str]) -> Iterator[Server]:
    """A server of each chosen kind that no other tests use."""
    kind = request.param
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    # A Redis that is killed must have on its disk whatever it acknowledged, else a lost job would be its own doing.
    server = RedisServer(None, "--appendfsync", "always") if kind == "redis" else SERVERS[kind]()
    if kind == "firestore":
        # The emulator has no disk: what a test takes away is a front, and the data stay.
        server = FrontedFirestoreServer()
    try:
        try:
            server.start()
        except CannotStart as error:
            if url_given_for(kind) is None:
                pytest.fail(f"no {kind} server for this test: {error}", pytrace=False)
            pytest.skip(f"the {kind} server that is given is not to be harmed, and none is installed")
        yield server
    finally:
        server.remove()


@pytest.fixture
def collected() -> Iterator[None]:
    """What drivers leave to the garbage collector, such as a connection whose making was cancelled in the wrong moment, is
    collected behind the test that it belongs to, and nothing is said of it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def own_url(own_server: Server) -> Iterator[str]:
    """A store with nothing in it, on a server that may be harmed; whatever was done to it is undone."""
    yield namespaced(own_server.url)
    own_server.thaw()
    if not own_server.is_alive:
        own_server.start()
