"""What passed while no process was there: decided by the next one as the pure functions decide it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncsched import Decision, Run, every
from asyncsched.codec import decode_cursor, decode_definition
from asyncsched.contract import Record
from asyncsched.plan import Span, Start, decide
from asyncsched.rules import rules_of
from asyncsched.stores.sqlite import SQLiteStore
from asyncsched.triggers import AnyTrigger
from tests.support.processes import client, workers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

INTERVAL_S = 0.2
OUTAGE_S = 2.0
#: Milliseconds from a claim to the start of its run, at the most; a fire time or the end of a grace may lie between.
CLAIM_TO_START_MS = 150

POLICIES: dict[str, dict[str, Any]] = {
    "latest": {},
    "earliest": {"catch_up": "earliest"},
    "earliest-in-grace": {"catch_up": "earliest", "misfire_grace": 1.0},
    "all": {"catch_up": "all", "max_catch_up": 4},
    "none": {"catch_up": "none"},
    "too-late": {"misfire_grace": 0.02},
    "jitter": {"jitter": 0.1},
    "jitter-and-grace": {"jitter": 0.1, "catch_up": "earliest", "misfire_grace": 0.5},
}


@pytest.fixture(autouse=True)
def needs_sqlite(stores: Sequence[str]) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
async def test_what_passed_between_two_processes_is_decided_as_the_pure_functions_do(
    tmp_path: Path, is_killed: bool
) -> None:
    with workers(tmp_path) as cluster:
        async with client(cluster.url) as scheduler:
            for id, policies in POLICIES.items():
                await scheduler.add_job("work", every(INTERVAL_S), id=id, args=[0.0], **policies)
            first = await cluster.start_ready("--lease", "1")
            await eventually(lambda: all(first.wrote("ended", id) for id in POLICIES))
            await asyncio.sleep(2 * INTERVAL_S)  # So that all of them are settled, and have run before.
            if is_killed:
                first.kill()
            else:
                await first.stop()
            before = await records_of(tmp_path)
            await asyncio.sleep(OUTAGE_S)
            second = await cluster.start_ready("--lease", "1")
            await eventually(lambda: all(second.wrote("ended", id) for id in POLICIES))
            await asyncio.sleep(INTERVAL_S)
            await second.stop()
            for id in POLICIES:
                runs = [run for run in await scheduler.history.runs(id, 1000) if run.outcome != "lost"]
                decisions = await scheduler.history.decisions(id, 1000)
                assert_foretold(before[id], runs, decisions)
                assert_conserved(before[id], runs, decisions)


async def records_of(folder: Path) -> dict[str, Record]:
    store = SQLiteStore(folder / "jobs.db")
    await store.open()
    try:
        return dict(await store.get(list(POLICIES)))
    finally:
        await store.close()


def assert_foretold(record: Record, runs: list[Run], decisions: list[Decision]) -> None:
    """The first that was decided after the outage is what comes of the record as it was before."""
    definition, cursor = decode_definition(record.body), decode_cursor(record.cursor)
    assert cursor.next is not None
    run = min(
        (run for run in runs if run.fire_time.timestamp() >= cursor.next), key=lambda run: run.fire_time
    )
    new = [decision for decision in decisions if decision.first.timestamp() >= cursor.next]
    assert new, f"{record.id}: nothing was decided about an outage of {OUTAGE_S} s"
    begun_at = min(decision.decided_at for decision in new)
    spans = sorted((span_of(d) for d in new if d.decided_at == begun_at), key=lambda span: span.first)
    assert run.started_at is not None
    started = run.started_at.timestamp()
    steps = [
        decide(
            definition, cursor, None, now, 0.0, rules_of(definition.policies, {}), (record.id, record.birth)
        )
        for now in (begun_at.timestamp(), *(started - ms / 1000 for ms in range(CLAIM_TO_START_MS)))
    ]
    # A Spread has no spans, but no job here overlaps.
    told = [(step.spans, step.fire if isinstance(step, Start) else None) for step in steps]  # type: ignore[union-attr]  # no Spread is among them, as said above
    expected = (tuple(spans), None), (tuple(spans), run.fire_time.timestamp())
    assert any(there in expected for there in told), (
        record.id,
        spans,
        run,
        told,
    )


def assert_conserved(record: Record, runs: list[Run], decisions: list[Decision]) -> None:
    """From the first fire time on, each ran or is in one decision."""
    definition = decode_definition(record.body)
    done = [run.fire_time.timestamp() for run in runs]
    for decision in decisions:
        span = span_of(decision)
        fires = named(definition.trigger, span.first, span.last)
        assert len(fires) == span.count
        done += fires
    assert definition.first is not None
    assert sorted(done) == named(definition.trigger, definition.first, max(done))


def named(trigger: AnyTrigger, first: float, last: float) -> list[float]:
    found = [first]
    while found[-1] < last:
        following = trigger.next(found[-1])
        assert following is not None
        found.append(following)
    return found


def span_of(decision: Decision) -> Span:
    first, last = decision.first.timestamp(), decision.last.timestamp()
    return Span(decision.reason, first, last, decision.count, decision.more, decision.detail)
