"""The conformance suite for job stores: a store that passes can be put under a scheduler.

It needs pytest, with the plugin of anyio that runs coroutine tests.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator

import pytest

# Cases live in modules that pytest does not collect; without this their assertions would fail without a word.
pytest.register_assert_rewrite("asyncsched.testing._contract")

from asyncsched.contract import JobStore  # noqa: E402
from asyncsched.testing._contract.claims import (  # noqa: E402
    ClaimCases,
    NextWakeCases,
    OrderCases,
    RepeatedClaimCases,
)
from asyncsched.testing._contract.hints import HintCases  # noqa: E402
from asyncsched.testing._contract.leases import LeaseCases  # noqa: E402
from asyncsched.testing._contract.lifecycle import LifecycleCases  # noqa: E402
from asyncsched.testing._contract.log import LogCases, PruneCases  # noqa: E402
from asyncsched.testing._contract.moved import MovedCases  # noqa: E402
from asyncsched.testing._contract.records import AddCases, PageCases, RemoveCases, UpdateCases  # noqa: E402
from asyncsched.testing._contract.renewals import RenewalCases  # noqa: E402
from asyncsched.testing._contract.replies import LostReplies, LostReplyCases  # noqa: E402
from asyncsched.testing._contract.settlements import (  # noqa: E402
    EntryCases,
    HandBackCases,
    RefusalCases,
    SettleCases,
    SpawnCases,
    StaleCases,
    UnparkCases,
)
from asyncsched.testing._contract.trial import Trial  # noqa: E402

__all__ = ["LostReplies", "StoreContract", "Trial"]


class StoreContract(
    AddCases,
    PageCases,
    UpdateCases,
    RemoveCases,
    MovedCases,
    ClaimCases,
    OrderCases,
    NextWakeCases,
    RepeatedClaimCases,
    RenewalCases,
    SettleCases,
    StaleCases,
    RefusalCases,
    HandBackCases,
    EntryCases,
    SpawnCases,
    UnparkCases,
    LeaseCases,
    LogCases,
    PruneCases,
    HintCases,
    LifecycleCases,
    LostReplyCases,
):
    """Every rule of :class:`asyncsched.contract.JobStore`, as tests of the store that a subclass names.

    A subclass says how to make a store, and pytest does the rest::

        class TestMyStore(StoreContract):
            def make_store(self, namespace: str) -> JobStore:
                return MyStore("server.example", prefix=namespace)

    ``make_store`` may be ``async``. It returns a new, unopened client of the given namespace: calls with one name must reach
    the same jobs, calls with two names different ones. Each test uses names of its own, and removes them with
    ``drop_namespace``, which does nothing unless overridden. A store that needs a place takes it from a fixture::

        class TestFileStore(StoreContract):
            @pytest.fixture(autouse=True)
            def folder(self, tmp_path: Path) -> None:
                self.path = tmp_path

            def make_store(self, namespace: str) -> JobStore:
                return FileStore(self.path / namespace)

    Where there can be one client only, as in memory, the same object may be returned again; it is then opened and closed
    more than once.

    No test sleeps. Time stands still until a test sets it: every client is opened with ``open(now=...)``. What the store does
    not claim to do in its ``capabilities`` is skipped, with the reason. The tests run on asyncio; override the fixture
    ``anyio_backend`` for other options of it.
    """

    pytestmark = pytest.mark.anyio

    #: Cases of thousands of records: left out where time is short.
    heavy_cases = frozenset(
        {
            "test_a_thousand_claims_are_settled_at_once",
            "test_body_and_cursor_may_have_a_mebibyte",
            "test_each_record_is_claimed_exactly_once",
            "test_ten_thousand_records_are_added_at_once",
        }
    )
    #: How long a hint may take to arrive. A store that gives none fails after so many seconds.
    patience_s: float = 5.0

    def make_store(self, namespace: str) -> JobStore | Awaitable[JobStore]:
        """A new, unopened client of *namespace*."""
        # No stub: whoever tests a store derives from this class, and is told so who forgot it.
        raise NotImplementedError(f"{type(self).__name__} must define make_store(namespace)")

    async def drop_namespace(self, namespace: str) -> None:
        """Remove what a test left behind in *namespace*, after every client of it was closed."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def trial(self) -> AsyncIterator[Trial]:
        """A fresh namespace with one opened client."""
        async with self.new_trial() as trial:
            yield trial

    @contextlib.asynccontextmanager
    async def new_trial(self) -> AsyncIterator[Trial]:
        """A fresh namespace with one opened client, for those who run a case without pytest."""
        namespace = f"contract-{uuid.uuid4().hex[:12]}"
        trial = Trial(self.make_store, namespace, self.patience_s)
        try:
            await trial.open()
            yield trial
        finally:
            await trial.close()
            for name in trial.namespaces:
                await self.drop_namespace(name)

    @classmethod
    def cases(cls) -> Iterator[str]:
        """The name of every case, in no particular order."""
        return (name for name in dir(cls) if name.startswith("test_"))

    async def run_case(self, case: str) -> None:
        """Run one case by its name, without pytest; it raises if the store breaks the rule."""
        async with self.new_trial() as trial:
            await getattr(self, case)(trial)
