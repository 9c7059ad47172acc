"""Jobs and runs in the user's own transaction: what is written and what the scheduler keeps come together or not at all."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asyncsched import (
    ConflictingIdError,
    DefinitionError,
    JobAdded,
    JobLookupError,
    JobSpec,
    LeaseLost,
    Retry,
    RunFailed,
    RunFinished,
    RunLost,
    RunSucceeded,
    Scheduler,
    StoreUnavailable,
    current_run,
    every,
    once,
    store_from_url,
)
from asyncsched.contract import JobStore, Renewal, Update
from tests.servers.running import Servers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

KINDS = ("postgres", "mariadb", "mysql")


class Database:
    """The user's side: a table of effects, and connections of the driver and of SQLAlchemy to it."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self._parts = urlsplit(url)
        self.table = f"effects_{uuid.uuid4().hex[:10]}"
        mark = "&" if self._parts.query else "?"
        self.store_url = f"{url}{mark}namespace={self.table}"
        self.insert = f"INSERT INTO {self.table} VALUES ('done')"

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of the driver with no transaction open."""
        parts = self._parts
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        host, port, name = parts.hostname or "127.0.0.1", parts.port, parts.path.lstrip("/")
        if self.kind == "postgres":
            import asyncpg

            made: Any = await asyncpg.connect(
                host=host, port=port, user=user, password=password, database=name
            )
            try:
                yield made
            finally:
                await made.close(timeout=5)
        else:
            import aiomysql

            made = await aiomysql.connect(
                host=host, port=port or 3306, user=user, password=password, db=name, autocommit=True
            )
            try:
                yield made
            finally:
                made.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection in a transaction, which commits at the end of the block, and rolls back on an exception."""
        async with self.connection() as connection:
            if self.kind == "postgres":
                async with connection.transaction():
                    yield connection
                return
            await connection.begin()
            try:
                yield connection
            except BaseException:
                await connection.rollback()
                raise
            await connection.commit()

    async def execute(self, connection: Any, statement: str) -> None:
        if self.kind == "postgres":
            await connection.execute(statement)
        else:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)

    async def effects(self) -> int:
        async with self.connection() as connection:
            statement = f"SELECT count(*) FROM {self.table}"
            if self.kind == "postgres":
                return int(await connection.fetchval(statement))
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
                return int((await cursor.fetchone())[0])

    @property
    def sqlalchemy_url(self) -> str:
        driver = "postgresql+asyncpg" if self.kind == "postgres" else "mysql+aiomysql"
        return self._parts._replace(scheme=driver, query="").geturl()


@pytest.fixture(params=KINDS)
async def database(
    request: pytest.FixtureRequest, stores: Sequence[str], servers: Servers
) -> AsyncIterator[Database]:
    kind: str = request.param
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    made = Database(kind, servers.url(kind))
    async with made.connection() as connection:
        await made.execute(connection, f"CREATE TABLE {made.table} (run VARCHAR(100))")
    yield made
    async with made.connection() as connection:
        await made.execute(connection, f"DROP TABLE {made.table}")


@pytest.fixture
async def scheduler(database: Database) -> AsyncIterator[Scheduler]:
    made = Scheduler(database.store_url, lease=2.0, poll_interval=0.2)
    async with made:
        yield made


class Rollback(Exception):
    """What takes a transaction back in these tests."""


@asynccontextmanager
async def taken_back(database: Database) -> AsyncIterator[Any]:
    """A transaction that rolls back at the end of the block."""
    try:
        async with database.transaction() as connection:
            yield connection
            raise Rollback
    except Rollback:
        pass


async def noop() -> None: ...


# -- adding ----------------------------------------------------------------------------------------------------------------


async def test_a_job_added_in_a_transaction_that_rolls_back_was_never_there(
    database: Database, scheduler: Scheduler
) -> None:
    async with taken_back(database) as connection:
        job = await scheduler.add_job(noop, id="outbox", connection=connection)
        await database.execute(connection, database.insert)
    with pytest.raises(JobLookupError):
        await scheduler.get_job(job.id)
    assert await scheduler.history.runs("outbox") == []
    assert await database.effects() == 0


async def test_a_job_added_in_a_transaction_runs_once_that_commits_and_not_before(
    database: Database, scheduler: Scheduler
) -> None:
    async with database.transaction() as connection:
        await scheduler.add_job(noop, id="outbox", connection=connection)
        await database.execute(connection, database.insert)
        await asyncio.sleep(0.5)  # Longer than a poll: it could have run.
        assert await scheduler.get_jobs() == []
    await eventually(lambda: has_succeeded(scheduler, "outbox"))
    assert await database.effects() == 1


async def test_without_an_open_transaction_the_job_is_there_at_once(
    database: Database, scheduler: Scheduler
) -> None:
    async with database.connection() as connection:
        await scheduler.add_job(noop, once(delay=60), id="later", connection=connection)
        assert (await scheduler.get_job("later")).state == "scheduled"


async def test_many_jobs_are_added_in_one_transaction(database: Database, scheduler: Scheduler) -> None:
    scheduler.register(noop, "noop")
    specs = [task_later(f"job-{n}") for n in range(50)]
    async with taken_back(database) as connection:
        await scheduler.add_jobs(specs, connection=connection)
    assert await scheduler.get_jobs() == []
    async with database.transaction() as connection:
        await scheduler.add_jobs(specs, connection=connection)
    assert len(await scheduler.get_jobs()) == 50


def task_later(id: str) -> Any:
    return JobSpec("noop", once(delay=60), id)


async def test_in_a_transaction_an_id_that_is_taken_is_told_and_the_transaction_can_go_on(
    database: Database, scheduler: Scheduler
) -> None:
    await scheduler.add_job(noop, once(delay=60), id="taken")
    async with database.transaction() as connection:
        with pytest.raises(ConflictingIdError, match="taken"):
            await scheduler.add_job(noop, once(delay=60), id="taken", connection=connection)
        kept = await scheduler.add_job(
            noop, once(delay=60), id="taken", on_conflict="keep", connection=connection
        )
        changed = await scheduler.add_job(
            noop, once(delay=90), id="taken", on_conflict="replace", tags=["new"], connection=connection
        )
        await database.execute(connection, database.insert)
    assert kept.tags == ()
    assert changed.tags == ("new",)
    assert (await scheduler.get_job("taken")).tags == ("new",)
    assert await database.effects() == 1


async def test_a_connection_and_a_session_of_sqlalchemy_are_joined(
    database: Database, scheduler: Scheduler
) -> None:
    engine = create_async_engine(database.sqlalchemy_url)
    try:
        async with engine.connect() as connection:
            # The very first statement of its transaction is the scheduler's.
            await scheduler.add_job(noop, once(delay=60), id="by connection", connection=connection)
            await connection.rollback()
        async with AsyncSession(engine) as session:
            await scheduler.add_job(noop, once(delay=60), id="by session", connection=session)
            await session.rollback()
        assert await scheduler.get_jobs() == []
        async with engine.begin() as connection:
            await connection.execute(text(database.insert))
            await scheduler.add_job(noop, once(delay=60), id="by connection", connection=connection)
        async with AsyncSession(engine) as session, session.begin():
            await scheduler.add_job(noop, once(delay=60), id="by session", connection=session)
        assert {job.id for job in await scheduler.get_jobs()} == {"by connection", "by session"}
    finally:
        await engine.dispose()


async def test_what_is_no_connection_of_the_store_s_database_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(DefinitionError, match=r"connection= takes a connection of .*; this is builtins\.str"):
        await scheduler.add_job(noop, connection="postgresql://")


async def test_run_on_start_is_refused_in_a_transaction(database: Database, scheduler: Scheduler) -> None:
    async with database.transaction() as connection:
        with pytest.raises(DefinitionError, match="run_on_start"):
            await scheduler.add_job(noop, every(60), run_on_start=True, connection=connection)


async def test_no_listener_hears_of_a_job_that_may_never_be(database: Database, scheduler: Scheduler) -> None:
    heard: list[JobAdded] = []
    scheduler.on(JobAdded, heard.append)
    async with taken_back(database) as connection:
        await scheduler.add_job(noop, once(delay=60), connection=connection)
    await scheduler.add_job(noop, once(delay=60), id="by itself")
    await eventually(lambda: bool(heard))
    assert [event.job_id for event in heard] == ["by itself"]


async def test_a_store_that_is_no_database_of_the_user_s_says_so() -> None:
    async with Scheduler() as scheduler:
        with pytest.raises(DefinitionError, match="'default' \\(MemoryStore\\) cannot join a transaction"):
            await scheduler.add_job(noop, connection=object())


# -- committing ------------------------------------------------------------------------------------------------------------


class Runner:
    """A scheduler with one task, whose body a test gives; and what became of its runs."""

    def __init__(self, scheduler: Scheduler, database: Database) -> None:
        self.scheduler = scheduler
        self.database = database
        self.bodies: list[Callable[[], Awaitable[Any]]] = []
        self.attempts = 0
        self.succeeded: list[RunSucceeded] = []
        self.failed: list[RunFailed] = []
        scheduler.on(RunSucceeded, self.succeeded.append)
        scheduler.on(RunFailed, self.failed.append)

        @scheduler.task(name="body", retry=Retry(max_attempts=3, base=0.01))
        async def body() -> Any:
            at, self.attempts = self.attempts, self.attempts + 1
            return await self.bodies[min(at, len(self.bodies) - 1)]()

    async def run(self, *bodies: Callable[[], Awaitable[Any]], trigger: Any = None) -> None:
        """Run them as the attempts of one job, and return when one has succeeded."""
        self.bodies = list(bodies)
        await self.scheduler.add_job("body", trigger, id="job")
        await eventually(lambda: bool(self.succeeded))

    def effect(self, connection: Any) -> Awaitable[None]:
        return self.database.execute(connection, self.database.insert)

    async def outcomes(self) -> list[str | None]:
        return [run.outcome for run in reversed(await self.scheduler.history.runs("job"))]

    def commit(self, connection: Any, **options: Any) -> AbstractAsyncContextManager[None]:
        return current_run().commit(connection, **options)


@pytest.fixture
async def runner(scheduler: Scheduler, database: Database) -> Runner:
    return Runner(scheduler, database)


async def test_the_effect_of_a_run_and_its_completion_are_one(runner: Runner) -> None:
    async def body() -> None:
        async with runner.database.transaction() as connection:
            async with runner.commit(connection, result="written"):
                await runner.effect(connection)
            # Settled, and not committed: for all others it is still under way.
            assert await runner.database.effects() == 0
            assert (await runner.scheduler.get_job("job")).state == "running"

    await runner.run(body)
    assert await runner.database.effects() == 1
    [run] = await runner.scheduler.history.runs("job")
    assert (run.outcome, run.result) == ("succeeded", "written")
    assert await runner.scheduler.wait_job("job", timeout=60) is None


async def test_without_an_open_transaction_the_block_makes_one_of_its_own(runner: Runner) -> None:
    async def body() -> None:
        async with runner.database.connection() as connection, runner.commit(connection):
            await runner.effect(connection)
            assert await runner.database.effects() == 0

    await runner.run(body)
    assert await runner.database.effects() == 1
    assert await runner.outcomes() == ["succeeded"]


async def test_a_recurring_job_goes_on_behind_its_commit(runner: Runner) -> None:
    async def body() -> None:
        async with runner.database.connection() as connection, runner.commit(connection):
            await runner.effect(connection)

    await runner.run(body, trigger=every(0.3))
    await eventually(lambda: len(runner.succeeded) >= 3)
    await runner.scheduler.remove_job("job")
    outcomes = await runner.outcomes()
    assert set(outcomes) == {"succeeded"}
    assert await runner.database.effects() == len(outcomes)


async def test_a_run_that_commits_leaves_its_place_under_a_limit_to_the_next(database: Database) -> None:
    under_way: list[int] = []

    async def body() -> None:
        under_way.append(1)
        async with database.transaction() as connection, made.commit(connection):
            await made.effect(connection)
        under_way.append(-1)

    # Whoever waits is woken: to look by himself he would wait for half a minute.
    async with Scheduler(database.store_url, lease=60, poll_interval=0.2) as scheduler:
        made = Runner(scheduler, database)
        made.bodies = [body]
        await scheduler.add_jobs(
            [JobSpec("body", id=f"job-{n}", policies={"concurrency_key": "one"}) for n in range(5)]
        )
        await eventually(lambda: len(made.succeeded) == 5)
    assert under_way == [1, -1] * 5
    assert await database.effects() == 5


async def test_an_error_within_the_block_takes_both_back_and_the_run_is_tried_again(runner: Runner) -> None:
    async def fails() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)
            raise ValueError("no")

    async def works() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)

    await runner.run(fails, works)
    assert await runner.database.effects() == 1
    assert await runner.outcomes() == ["failed", "succeeded"]


async def test_a_run_that_failed_keeps_nothing_of_the_result_of_its_block(runner: Runner) -> None:
    async def fails() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection, result="written"):
            raise ValueError("no")

    async def works() -> None:
        pass

    await runner.run(fails, works)
    assert [(e.error, e.result) for e in runner.failed] == [("ValueError: no", None)]
    [_, failed] = await runner.scheduler.history.runs("job")
    assert (failed.outcome, failed.result) == ("failed", None)


async def test_what_is_told_of_a_run_that_committed_is_the_result_of_its_block(runner: Runner) -> None:
    async def body() -> str:
        async with runner.database.connection() as connection, runner.commit(connection, result="written"):
            await runner.effect(connection)
        return "returned"

    await runner.run(body)
    [run] = await runner.scheduler.history.runs("job")
    assert [run.result] == [e.result for e in runner.succeeded] == ["written"]


async def test_a_transaction_that_was_rolled_back_can_be_tried_again_within_the_run(runner: Runner) -> None:
    async def body() -> None:
        async with taken_back(runner.database) as connection, runner.commit(connection, result="first"):
            await runner.effect(connection)
        async with (
            runner.database.transaction() as connection,
            runner.commit(connection, result="second"),
        ):
            await runner.effect(connection)

    await runner.run(body)
    assert await runner.database.effects() == 1
    [run] = await runner.scheduler.history.runs("job")
    assert (run.outcome, run.result) == ("succeeded", "second")


async def test_a_rollback_behind_the_block_takes_both_back_too(runner: Runner) -> None:
    async def fails() -> None:
        async with runner.database.transaction() as connection:
            async with runner.commit(connection):
                await runner.effect(connection)
            raise ValueError("too late")

    async def works() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)

    await runner.run(fails, works)
    assert await runner.database.effects() == 1
    assert await runner.outcomes() == ["failed", "succeeded"]


async def test_a_run_that_returns_though_its_transaction_was_rolled_back_has_failed(runner: Runner) -> None:
    async def rolls_back() -> None:
        async with taken_back(runner.database) as connection, runner.commit(connection):
            await runner.effect(connection)

    async def works() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)

    await runner.run(rolls_back, works)
    assert await runner.database.effects() == 1
    assert await runner.outcomes() == ["failed", "succeeded"]
    await eventually(lambda: bool(runner.failed))
    assert "rolled back" in (runner.failed[0].error or "")


async def test_an_error_behind_the_commit_changes_nothing_about_the_success(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)
        raise ValueError("after all is done")

    await runner.run(body)
    assert await runner.database.effects() == 1
    assert await runner.outcomes() == ["succeeded"]
    assert runner.failed == []
    assert any("had committed before it ended otherwise" in record.message for record in caplog.records)


async def test_a_run_that_lost_its_job_cannot_commit(runner: Runner) -> None:
    lost: list[LeaseLost] = []

    async def loses() -> None:
        try:
            async with runner.database.transaction() as connection, runner.commit(connection):
                await runner.effect(connection)
                await revoke(runner.database, "job")
        except LeaseLost as error:
            lost.append(error)
            raise

    async def works() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)

    await runner.run(loses, works)
    assert await runner.database.effects() == 1
    assert [error.job_id for error in lost] == ["job"]
    succeeded = [run for run in await runner.scheduler.history.runs("job") if run.outcome == "succeeded"]
    assert len(succeeded) == 1


async def revoke(database: Database, id: str) -> None:
    """What another instance does that takes a job from its holder."""
    store: JobStore = store_from_url(database.store_url)
    await store.open()
    record = (await store.get([id]))[id]
    await store.update(
        Update(
            id=id, version=record.version, body=record.body, queue=record.queue, priority=record.priority,
            wake_at=None, hold=None, revoke=True,
        )
    )  # fmt: skip
    await store.close()


async def test_a_second_block_in_one_run_is_refused(runner: Runner) -> None:
    refused: list[DefinitionError] = []

    async def body() -> None:
        async with runner.database.connection() as connection:
            async with runner.commit(connection):
                await runner.effect(connection)
            try:
                async with runner.commit(connection):
                    await runner.effect(connection)
            except DefinitionError as error:
                refused.append(error)

    await runner.run(body)
    assert len(refused) == 1
    assert await runner.database.effects() == 1


async def test_a_transaction_that_is_open_with_its_settlement_holds_up_nobody(runner: Runner) -> None:
    """Not the renewal of other runs of the instance, nor their settlements, nor claims."""
    release = asyncio.Event()
    settled = asyncio.Event()

    async def slow() -> None:
        async with runner.database.transaction() as connection:
            async with runner.commit(connection):
                await runner.effect(connection)
            settled.set()
            await release.wait()

    @runner.scheduler.task(name="long")
    async def long() -> None:
        await asyncio.sleep(3.5)  # Beyond its first lease: it must have been renewed.

    @runner.scheduler.task(name="short")
    async def short() -> None: ...

    runner.bodies = [slow]
    await runner.scheduler.add_job("body", id="job")
    await runner.scheduler.add_job("long", id="long")
    await asyncio.wait_for(settled.wait(), 60)
    await runner.scheduler.add_job("short", id="short")
    await eventually(lambda: has_succeeded(runner.scheduler, "short"))
    await eventually(lambda: has_succeeded(runner.scheduler, "long"))
    # By now the lease of the first run has ended twice over, and its transaction is still open.
    release.set()
    await eventually(lambda: has_succeeded(runner.scheduler, "job"))
    assert [run.outcome for run in await runner.scheduler.history.runs("long")] == ["succeeded"]
    assert await runner.outcomes() == ["succeeded"]
    assert runner.attempts == await runner.database.effects() == 1


async def no_renewal(*_: object) -> Renewal:
    raise StoreUnavailable("away")


@pytest.mark.parametrize("ends", ["committed", "rolled back"])
async def test_a_run_whose_lease_cannot_be_renewed_behind_its_block_ends_as_its_transaction_did(
    runner: Runner, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[RunLost] = []
    runner.scheduler.on(RunLost, lost.append)

    async def block() -> None:
        made = runner.database.transaction() if ends == "committed" else taken_back(runner.database)
        async with made as connection, runner.commit(connection):
            await runner.effect(connection)

    async def body() -> None:
        await block()
        with monkeypatch.context() as patch:
            patch.setattr(type(store_from_url(runner.database.store_url)), "renew", no_renewal)
            await asyncio.sleep(10)

    async def works() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)

    await runner.run(body, works)
    assert await runner.database.effects() == 1
    if ends == "committed":
        assert lost == []
        assert runner.attempts == 1
    else:
        assert len(lost) == 1
        assert runner.attempts == 2


async def test_a_run_that_is_claimed_anew_before_its_rollback_is_known_has_failed_and_is_tried_again(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind: Any = type(store_from_url(runner.database.store_url))
    look, is_claimed_anew = kind.get, asyncio.Event()

    async def late(store: JobStore, ids: Sequence[str]) -> Any:
        if list(ids) == ["job"]:
            await is_claimed_anew.wait()
        return await look(store, ids)

    async def rolls_back() -> None:
        async with taken_back(runner.database) as connection, runner.commit(connection):
            await runner.effect(connection)
        monkeypatch.setattr(kind, "get", late)
        monkeypatch.setattr(kind, "renew", no_renewal)

    async def works() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)

    async def see_it_claimed() -> None:
        await eventually(lambda: "goes on under fence" in caplog.text)
        monkeypatch.undo()
        is_claimed_anew.set()

    await asyncio.gather(runner.run(rolls_back, works), see_it_claimed())
    assert await runner.database.effects() == 1
    assert await runner.outcomes() == ["lost", "failed", "succeeded"]
    assert runner.attempts == 2


async def test_a_run_that_lingers_behind_its_rollback_while_another_instance_does_the_job_is_told_as_lost(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[RunFinished] = []
    theirs = store_from_url(runner.database.store_url)
    kind: Any = type(theirs)
    renew = kind.renew

    async def late(store: JobStore, *arguments: Any) -> Any:
        """Once the other has claimed the job: a renewal that came first would keep it for the run that lingers."""
        if store is not theirs:
            await eventually(lambda: other.attempts == 1)
        return await renew(store, *arguments)

    runner.scheduler.on(RunFinished, finished.append)

    async def lingers() -> None:
        await runner.scheduler.pause()
        async with taken_back(runner.database) as connection:
            async with runner.commit(connection):
                await runner.effect(connection)
            await asyncio.sleep(2.5)  # Beyond the lease.
            monkeypatch.setattr(kind, "renew", late)
        await eventually(lambda: bool(other.succeeded))
        await asyncio.sleep(
            0.2
        )  # The other has told its end; this is for what it writes behind that, in the real time of the server.

    async def works() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)

    runner.bodies = [lingers]
    await runner.scheduler.add_job("body", id="job")
    await eventually(lambda: runner.attempts == 1)
    async with Scheduler(theirs, lease=2.0, poll_interval=0.2) as scheduler:
        other = Runner(scheduler, runner.database)
        other.bodies = [works]
        await eventually(lambda: bool(finished))
    assert [event.outcome for event in finished] == ["lost"]
    assert [event.fence for event in other.succeeded] > [finished[0].fence]
    assert await runner.outcomes() == ["lost", "succeeded"]
    assert await runner.database.effects() == 1


async def test_a_run_goes_on_behind_its_commit_for_longer_than_its_lease(runner: Runner) -> None:
    ended: list[bool] = []

    async def body() -> None:
        async with runner.database.transaction() as connection, runner.commit(connection):
            await runner.effect(connection)
        await asyncio.sleep(3.0)
        ended.append(True)

    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    await runner.run(body, trigger=every(hours=1, anchor=soon))
    assert ended == [True]
    assert await runner.outcomes() == ["succeeded"]


async def has_succeeded(scheduler: Scheduler, id: str) -> bool:
    return any(run.outcome == "succeeded" for run in await scheduler.history.runs(id))


async def test_a_sqlalchemy_session_can_commit_a_run(runner: Runner) -> None:
    engine = create_async_engine(runner.database.sqlalchemy_url)

    async def body() -> None:
        async with AsyncSession(engine) as session, session.begin(), runner.commit(session):
            await session.execute(text(runner.database.insert))

    try:
        await runner.run(body)
        assert await runner.database.effects() == 1
        assert await runner.outcomes() == ["succeeded"]
    finally:
        await engine.dispose()
