"""What every test may ask for: the event loop, and the stores that this run covers."""

import signal
from argparse import ArgumentTypeError
from collections.abc import Generator, Iterator, Mapping, Sequence

import pytest
from hypothesis import settings

from tests.servers.running import Servers

# Some tests use its parts before they load the whole.
pytest.register_assert_rewrite("asyncsched.testing._contract")

STORES = (
    "memory",
    "sqlite",
    "redis",
    "postgres",
    "mariadb",
    "mysql",
    "mongodb",
    "zookeeper",
    "etcd",
    "firestore",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stores",
        type=_store_names,
        default=STORES,
        metavar="NAMES",
        help=f"run the store tests on these only, separated by commas (default: {','.join(STORES)})",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="run the long tests too, and let Hypothesis make 20 times as many examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background deaf to Ctrl-C, and so would be all processes that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("long", max_examples=20 * settings.default.max_examples)
    if config.getoption("--long"):
        settings.load_profile("long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(_group(item)))
        if not config.getoption("--long") and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long; runs with --long"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed and logged, as text that can be sent to the process that gathers the reports: tests of half
    surrogates print them."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def _group(item: pytest.Item) -> str:
    """What runs in one process, one test after the other: the tests of a kind of store, or else those of a file."""
    callspec: object = getattr(item, "callspec", None)
    parameters: Mapping[str, object] = getattr(callspec, "params", {})
    return str(parameters.get("store_kind", item.path.stem))


def _store_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in STORES]
    if unknown:
        raise ArgumentTypeError(
            f"no such store: {', '.join(map(repr, unknown))}; choose from {', '.join(STORES)}"
        )
    return names


def chosen_stores(config: pytest.Config) -> Sequence[str]:
    """The stores that this run covers, in the order in which they were named."""
    return config.getoption("--stores")


def pytest_report_header(config: pytest.Config) -> list[str]:
    chosen = chosen_stores(config)
    left_out = [name for name in STORES if name not in chosen]
    lines = [f"stores: {', '.join(chosen)}"]
    if left_out:
        lines.append(f"stores left out by --stores, NOT tested: {', '.join(left_out)}")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat each test that asks for ``store_kind`` once per chosen store."""
    if "store_kind" in metafunc.fixturenames:
        metafunc.parametrize("store_kind", chosen_stores(metafunc.config), scope="session")


@pytest.fixture(scope="session")
def stores(pytestconfig: pytest.Config) -> Sequence[str]:
    """The names of all stores that this run covers."""
    return chosen_stores(pytestconfig)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers of this run; each starts when it is first asked for."""
    running = Servers()
    yield running
    running.remove()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
