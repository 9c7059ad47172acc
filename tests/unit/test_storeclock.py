"""What is known of a store's clock, from the round trips that told it."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from asyncsched import ClockSkew, Scheduler
from asyncsched.storeclock import StoreClock
from asyncsched.testing import ManualClock
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio


class Server:
    """A clock some seconds off, which is read in the middle of a round trip."""

    def __init__(self, clock: ManualClock, offset_s: float) -> None:
        self.clock = clock
        self.offset_s = offset_s
        self.trip_s = 0.0

    async def answer(self, known: StoreClock, *, read_at: float = 0.5) -> None:
        """One round trip, with the server's clock read at that share of it."""
        asked_at = self.clock.monotonic()
        await self.clock.advance(self.trip_s * read_at)
        now = self.clock.time() + self.offset_s
        await self.clock.advance(self.trip_s * (1 - read_at))
        known.read(asked_at, now)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def error_of(known: StoreClock, server: Server) -> float:
    return known.now() - (server.clock.time() + server.offset_s)


async def test_the_clock_of_the_host_is_read_and_has_no_skew(clock: ManualClock) -> None:
    known = StoreClock(clock, is_host=True)
    await clock.advance(5)
    known.read(clock.monotonic(), clock.time())
    assert known.now() == pytest.approx(clock.time())
    assert known.skew() == ClockSkew(timedelta(), timedelta())
    assert known.slack_s == 0.0


async def test_a_server_s_clock_is_known_to_half_of_a_round_trip(clock: ManualClock) -> None:
    server, known = Server(clock, 7200.0), StoreClock(clock, is_host=False)
    server.trip_s = 0.2
    await server.answer(known, read_at=0.0)
    assert abs(error_of(known, server)) <= 0.1 + 1e-6
    assert known.skew().error == timedelta(seconds=0.1)
    assert known.skew().offset.total_seconds() == pytest.approx(7200.0, abs=0.1001)


async def test_a_short_round_trip_is_believed_before_a_long_one(clock: ManualClock) -> None:
    server, known = Server(clock, -3.0), StoreClock(clock, is_host=False)
    server.trip_s = 0.001
    await server.answer(known)
    server.trip_s = 0.9
    await server.answer(known, read_at=0.0)
    assert abs(error_of(known, server)) < 0.001


async def test_a_long_round_trip_is_believed_where_it_shows_that_the_clock_was_set(
    clock: ManualClock,
) -> None:
    server, known = Server(clock, 0.0), StoreClock(clock, is_host=False)
    server.trip_s = 0.001
    await server.answer(known)
    server.offset_s, server.trip_s = 60.0, 0.5
    await server.answer(known)
    assert abs(error_of(known, server)) <= 0.5


async def test_the_shortest_of_some_samples_counts(clock: ManualClock) -> None:
    server, known = Server(clock, 10.0), StoreClock(clock, is_host=False)
    trips = iter((0.4, 0.01, 0.4))

    async def ask() -> float:
        trip_s = next(trips)
        await clock.advance(trip_s)
        return clock.time() + server.offset_s

    await known.sample(ask)
    assert next(trips, None) is None
    assert abs(error_of(known, server)) <= 0.01


async def test_what_was_reached_stays_reached_when_a_better_sample_puts_the_clock_back(
    clock: ManualClock,
) -> None:
    server, known = Server(clock, 0.0), StoreClock(clock, is_host=False)
    server.trip_s = 0.2
    await server.answer(known, read_at=1.0)
    await clock.advance(0.15)
    before = known.reached()
    server.trip_s = 0.0
    server.offset_s = -0.1
    await server.answer(known)
    assert known.now() < before
    assert known.reached() == before
    server.offset_s = -60.0
    await server.answer(known)
    assert known.reached() < before - 50


@pytest.mark.parametrize(("offset_s", "said"), [(7200.0, "ahead of"), (-2.5, "behind"), (0.5, None)])
async def test_a_skew_of_more_than_a_second_is_told_at_the_start(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, offset_s: float, said: str | None
) -> None:
    store = SharedMemory(lambda: clock.time() + offset_s)
    with caplog.at_level(logging.WARNING, logger="asyncsched"):
        async with Scheduler(store, clock=clock) as scheduler:
            assert scheduler.clock_skew().offset.total_seconds() == pytest.approx(offset_s, abs=1e-3)
    told = [record.message for record in caplog.records if "clock of store 'default'" in record.message]
    assert len(told) == (said is not None)
    assert said is None or f"{abs(offset_s):.1f} s {said} the clock of this host" in told[0]
