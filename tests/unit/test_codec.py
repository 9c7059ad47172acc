"""What is stored of jobs: versioned, and never dropped because it could not be understood. Through a real store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import (
    Cron,
    Event,
    JobHandedBack,
    JobQuarantined,
    JobStore,
    MemoryStore,
    NewerFormatError,
    Retry,
    Scheduler,
    SerializationError,
    Trigger,
    cron,
    every,
    manual,
    once,
)
from asyncsched.codec import (
    FORMAT,
    decode_cursor,
    decode_definition,
    decode_run,
    decode_span,
    encode,
    retry_from,
    retry_to,
)
from asyncsched.contract import Record
from asyncsched.definition import Cursor, Definition, Pending, Policies, Request, RunForm, SpanForm, Tally
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.stores import make_store

DEFINITION = Definition(
    1.5,
    2.5,
    every(60).bind(1.5),
    3,
    61.5,
    b"Dargs",
    "name",
    Policies(timeout=5.0, on_exhausted="pause", retry=retry_to(Retry(max_attempts=3, on=(ValueError,)))),
    ("a", "é"),
    b"Dmeta",
    True,
    (1.0, 2.0, 3, False),
    (Request(4, 9.25, True),),
)
CURSOR = Cursor(
    3, 61.5, Pending(1.5, 9.0, 2, 4), 4, b"Dcarried", Tally(1, 2, 3, 4, 5.0, 6.0, 7.0, "e", 8.0, 9.0, 10.0)
)
RUN = RunForm("failed", "t", 1.0, 2.0, 3.0, 4, "here", "error", "trace", b"Dresult", b"Dmeta")
SPAN = SpanForm(9.0, 7, True, "detail")


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "decode"),
    [(DEFINITION, decode_definition), (CURSOR, decode_cursor), (RUN, decode_run), (SPAN, decode_span)],
    ids=lambda value: type(value).__name__,
)
def test_each_form_comes_back_as_it_was(form: Any, decode: Callable[[bytes], Any]) -> None:
    blob = encode(form)
    assert msgspec.msgpack.decode(blob)[0] == FORMAT
    assert decode(blob) == form


@pytest.mark.parametrize(
    "trigger",
    [once(delay=5), once(delay=5).bind(1e9), every("5m"), cron("0 9 * * mon", tz="Europe/Berlin"), manual()],
    ids=str,
)
def test_each_trigger_is_stored_as_what_it_is(trigger: Any) -> None:
    restored = decode_definition(encode(Definition(0.0, 0.0, trigger, 1, None))).trigger
    assert restored == trigger
    assert type(restored) is type(trigger)
    assert isinstance(restored, Trigger)


def test_an_empty_cursor_is_that_of_a_job_that_has_not_run() -> None:
    assert decode_cursor(b"") == Cursor()


@pytest.mark.parametrize("decode", [decode_definition, decode_cursor, decode_run, decode_span])
@given(st.binary(min_size=1, max_size=100))
def test_no_bytes_raise_anything_but_a_serialization_error(
    decode: Callable[[bytes], Any], blob: bytes
) -> None:
    for damaged in (blob, bytes([FORMAT]) + blob):
        try:
            decode(damaged)
        except SerializationError:
            continue


@given(st.data())
def test_no_damage_raises_anything_but_a_serialization_error(data: Any) -> None:
    blob = bytearray(encode(DEFINITION))
    blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_definition(bytes(blob))
    except SerializationError:
        return


@pytest.mark.parametrize("form", [None, "whatever", {"a": 1}, []], ids=repr)
@pytest.mark.parametrize("format_", [FORMAT + 1, 127, 1 << 40])
def test_a_later_format_is_told_from_damage(format_: int, form: Any) -> None:
    with pytest.raises(NewerFormatError, match=f"format {format_}.*upgrade"):
        decode_definition(msgspec.msgpack.encode([format_, form]))


@pytest.mark.parametrize(
    "blob", [b"", b"\x00", b"\x92\x00\x90", b"\x91" * 200_000, b"\x92\x02", b"\x91\x02\x00\xc1"]
)
def test_what_no_version_writes_is_damage(blob: bytes) -> None:
    with pytest.raises(SerializationError) as caught:
        decode_definition(blob)
    assert not isinstance(caught.value, NewerFormatError)


def test_fields_that_a_later_version_adds_at_the_end_are_passed_over() -> None:
    format_, parts = msgspec.msgpack.decode(encode(SPAN))
    assert decode_span(msgspec.msgpack.encode([format_, [*parts, "new"]])) == SPAN


class Custom(Exception):
    pass


@pytest.mark.parametrize(
    "retry",
    [
        Retry(),
        Retry(max_attempts=3, base=0.5, multiplier=3, max_delay=60, spread=0.2),
        Retry(delays=[1, 2, 3]),
        Retry(on=(Custom, OSError), never_on=(ConnectionError,)),
    ],
    ids=str,
)
def test_a_retry_comes_back_as_it_was(retry: Retry) -> None:
    assert retry_from(retry_to(retry)) == retry


def test_an_error_class_that_is_not_loaded_here_is_left_out() -> None:
    form = msgspec.structs.replace(
        retry_to(Retry()), on=("nowhere:Error", "builtins:OSError", "builtins:print")
    )
    assert retry_from(form).on == (OSError,)


# -- through a store ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(store_kind: str, tmp_path: Path, servers: Servers) -> JobStore:
    return make_store(store_kind, tmp_path, servers)


@pytest.fixture
async def heard() -> list[Event]:
    return []


@pytest.fixture
async def client(store: JobStore, heard: list[Event]) -> AsyncIterator[Scheduler]:
    """Started paused, with one good job beside which a bad one is put."""
    scheduler = Scheduler(store)
    scheduler.on(Event, heard.append)
    scheduler.register(good, "good")
    await scheduler.start(paused=True)
    yield scheduler
    await scheduler.stop(drain=0)


async def good() -> str:
    return "good"


async def put(scheduler: Scheduler, store: JobStore, **fields: Any) -> Record:
    """The job ``bad``, due now, with some columns of its record changed, and a good job behind it."""
    now = await store.now() - 1
    body = encode(Definition(now, now, once(delay=0).bind(now), 1, now))
    given = {"task": "good", "body": body, "cursor": b"", **fields}
    record = Record(id="bad", birth="x", queue="default", priority=0, wake_at=now, hold=None, **given)
    await store.add([record])
    await scheduler.add_job("good", id="good")
    await scheduler.resume()
    assert await scheduler.wait_job("good", timeout=10) is None
    return record


async def wait_for(heard: list[Event], kind: type[Event]) -> Any:
    async with asyncio.timeout(10):
        while not any(isinstance(event, kind) for event in heard):  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(0.005)
    return next(event for event in heard if isinstance(event, kind))


@pytest.mark.anyio
async def test_a_record_of_a_later_format_is_handed_back_for_others_and_stays_as_it_is(
    client: Scheduler, store: JobStore, heard: list[Event]
) -> None:
    record = await put(client, store, body=msgspec.msgpack.encode([FORMAT + 1, "future"]))
    event = await wait_for(heard, JobHandedBack)
    assert event.job_id == "bad"
    assert "upgrade" in event.error
    [after] = (await store.get(["bad"])).values()
    assert (after.body, after.cursor, after.hold, after.tries) == (record.body, b"", None, 0)
    assert after.wake_at is not None
    assert after.wake_at > await store.now()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {"body": b""},
        {"body": b"\x00nonsense"},
        {"body": bytes([FORMAT]) + b"\xc1"},
        {"body": bytes([FORMAT]) + b"\x91\x01"},
        {"cursor": b"nonsense"},
        {"cursor": bytes([FORMAT]) + b"\x90" + b"trailing"},
    ],
    ids=str,
)
async def test_a_damaged_record_is_quarantined_with_the_reason_and_nothing_of_it_is_lost(
    client: Scheduler, store: JobStore, heard: list[Event], fields: dict[str, bytes]
) -> None:
    record = await put(client, store, **fields)
    event = await wait_for(heard, JobQuarantined)
    assert event.job_id == "bad"
    assert "SerializationError" in event.error
    [after] = (await store.get(["bad"])).values()
    assert (after.body, after.cursor) == (record.body, record.cursor)
    assert (after.hold, after.wake_at, after.holder) == ("quarantined", None, None)
    [decision] = await client.history.decisions("bad")
    assert decision.reason == "quarantined"
    assert "SerializationError" in (decision.detail or "")


@pytest.mark.anyio
async def test_a_quarantined_job_is_listed_and_can_be_removed(
    client: Scheduler, store: JobStore, heard: list[Event]
) -> None:
    await put(client, store, body=b"\x00nonsense")
    await wait_for(heard, JobQuarantined)
    [job] = await client.get_jobs(state="quarantined")
    assert (job.id, job.task) == ("bad", "good")
    assert await client.remove_job("bad")
    assert await store.get(["bad"]) == {}


@pytest.mark.anyio
async def test_a_job_of_an_unknown_task_is_handed_back_and_run_once_the_task_is_known(
    client: Scheduler, store: JobStore, heard: list[Event]
) -> None:
    await put(client, store, task="later")
    event = await wait_for(heard, JobHandedBack)
    assert "later" in event.error
    assert (await client.get_job("bad")).state == "scheduled"
    client.register(good, "later")
    assert await client.wait_job("bad", timeout=10) is None
    assert (await client.history.runs("bad"))[0].result == "good"


@pytest.mark.anyio
async def test_arguments_that_cannot_be_read_fail_the_run_and_keep_the_job(
    client: Scheduler, store: JobStore, heard: list[Event]
) -> None:
    now = await store.now() - 1
    definition = Definition(now, now, once(delay=0).bind(now), 1, now, b"D\xc1")
    await put(client, store, body=encode(definition))
    job = await client.wait_job("bad", timeout=10)
    assert job is not None
    assert job.state == "failed"
    assert "SerializationError" in (job.last_error or "")


@pytest.mark.anyio
async def test_a_trigger_that_fails_quarantines_its_job_alone(clock: ManualClock) -> None:
    """A stored expression that this version's parser refuses."""
    store, heard = MemoryStore(), list[Event]()
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.on(JobQuarantined, heard.append)
        scheduler.register(good, "good")
        now = clock.time()
        definition = Definition(now, now, Cron("99 * * * *"), 1, now)
        await store.add([Record("bad", "b", "default", 0, "good", now, None, encode(definition), b"")])
        await scheduler.add_job("good", every(60), id="good")
        await clock.advance(61)
        assert len(heard) == 1
        assert (await scheduler.get_job("bad")).state == "quarantined"
        assert (await scheduler.history.stats("good")).succeeded == 1
