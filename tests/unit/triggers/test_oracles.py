"""Cron against other readers of it, and against a clock that is watched minute by minute."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

import croniter
import pytest
from cronsim import CronSim, CronSimError
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncsched import Cron, CronError, cron
from asyncsched.triggers.fields import parse_fields
from asyncsched.triggers.walk import Walk
from asyncsched.triggers.zones import ZoneTable, zone_table
from tests.support.examples import examples
from tests.unit.triggers.walker import (
    DAY,
    FIRST,
    LAST,
    ZONES,
    Expression,
    Field,
    Watched,
    fires,
    make_field,
    transitions,
    watch,
)

ALL_FORMS = ("*", "a", "*/s", "a,b", "a-b", "a-b/s", "a/s", "wrap")
#: What all read alike: a step that begins at a number, and a range over the end, are read in different ways.
COMMON_FORMS = ("*", "a", "*/s", "a,b", "a-b", "a-b/s")
NUMBERS = st.integers(0, 10**6)
#: So many tests all time zones are divided over.
PARTS = 12


def expressions(forms: tuple[str, ...]) -> st.SearchStrategy[Expression]:
    return st.builds(
        lambda a, b, c, d, e: Expression(
            make_field(a, 0, 59, forms),
            make_field(b, 0, 23, forms),
            make_field(c, 1, 31, forms),
            make_field(d, 1, 12, forms),
            make_field(e, 0, 6, forms),
        ),
        *[NUMBERS] * 5,
    )


ANY, COMMON = expressions(ALL_FORMS), expressions(COMMON_FORMS)
#: More often at a time that is skipped or repeated: at any time of few hours, on most days.
AT_NIGHT = st.builds(
    lambda a, b, c, e: Expression(
        make_field(a, 0, 59, ("a", "a,b", "*/s", "*")),
        make_field(b // 4, 0, 3, ("a", "a,b", "a-b"))
        if b % 4
        else make_field(b // 4, 0, 23, ("*", "*/s", "a-b")),
        make_field(c, 1, 31, ("*", "*/s", "*", "a-b")),
        make_field(0, 1, 12, ("*",)),
        make_field(e, 0, 6, ("*", "*", "a-b")),
    ),
    *[NUMBERS] * 4,
)
INSTANTS = st.integers(FIRST, LAST - 40 * DAY)
GAPS, FOLDS = st.sampled_from(["run", "skip", "shift"]), st.sampled_from(["first", "second", "both"])


def compiled(expression: Expression, **options: str) -> Cron | None:
    """None where no month has such a day."""
    try:
        trigger = cron(str(expression), **options)  # type: ignore[arg-type]  # whatever a test gives
    except CronError as error:
        if "never comes" in str(error):
            return None
        raise
    assert isinstance(trigger, Cron)
    return trigger


def following(trigger: Cron, at: float, n: int) -> list[float]:
    found: list[float] = []
    while len(found) < n and (fire := trigger.next(found[-1] if found else at)) is not None:
        found.append(fire)
    return found


# -- the grammar -----------------------------------------------------------------------------------------------------------


@examples(5000)
@given(ANY)
def test_each_field_stands_for_the_values_that_it_was_made_of(expression: Expression) -> None:
    try:
        fields = parse_fields(str(expression), "", False)
    except CronError:
        assert min(expression.day.values) > max(
            28 if month == 2 else 30 for month in expression.month.values
        ) or (expression.month.values == {2} and min(expression.day.values) > 28)
        return
    assert set(fields.minutes) == expression.minute.values
    assert set(fields.hours) == expression.hour.values
    assert fields.days.numbers == expression.day.values
    assert fields.months == expression.month.values
    assert fields.days.weekdays == expression.weekday.values
    assert fields.follows_clock == expression.follows_clock


# -- croniter and cronsim --------------------------------------------------------------------------------------------------


@examples(3500)
@given(COMMON, INSTANTS)
def test_it_fires_when_croniter_does(expression: Expression, at: int) -> None:
    # croniter joins two day fields by OR unless one is exactly a star.
    assume(all(field.text == "*" or not field.is_star for field in (expression.day, expression.weekday)))
    trigger = compiled(expression)
    if trigger is None:
        return
    other = croniter.croniter(str(expression), float(at), max_years_between_matches=60)
    assert following(trigger, at, 3) == [other.get_next(float) for _ in range(3)]
    other = croniter.croniter(str(expression), float(at), max_years_between_matches=60)
    earlier = other.get_prev(float)
    if earlier > FIRST:
        assert trigger.previous(at - 1e-6) == earlier


@examples(4000)
@given(COMMON, INSTANTS)
def test_it_fires_when_cronsim_does(expression: Expression, at: int) -> None:
    trigger = compiled(expression)
    begin = datetime.fromtimestamp(at, UTC)
    if trigger is None:
        with pytest.raises((CronSimError, StopIteration)):
            next(CronSim(str(expression), begin))
        return
    other = CronSim(str(expression), begin)
    assert following(trigger, at, 3) == [next(other).timestamp() for _ in range(3)]


@examples(2500)
@given(COMMON, st.sampled_from(ZONES), INSTANTS)
def test_in_a_zone_it_fires_when_cronsim_does(expression: Expression, zone: str, at: int) -> None:
    trigger = compiled(expression, tz=zone)
    assume(trigger is not None)
    assert trigger is not None
    found = following(trigger, at, 3)
    # At transitions they differ: cronsim runs several skipped times as often, and not at all by its rule with seconds.
    changes = transitions(zone)
    assume(not any(abs(change - fire) < 2 * DAY for change in changes for fire in (at, *found)))
    other = CronSim(str(expression), datetime.fromtimestamp(at, ZoneInfo(zone)))
    assert found == [next(other).timestamp() for _ in range(3)]


# -- the clock, watched ----------------------------------------------------------------------------------------------------


def offset_at(zone: ZoneInfo, at: int) -> int:
    """What zoneinfo says, in seconds east."""
    return round((datetime.fromtimestamp(at, zone).utcoffset() or timedelta()).total_seconds())


@lru_cache(maxsize=256)
def watched_around(zone: str, change: int) -> tuple[Watched, int, int]:
    """The clock around a change, and the span of which its fire times are compared: past what a gap moves."""
    info = ZoneInfo(zone)
    gap_s = max(0, offset_at(info, change) - offset_at(info, change - 1))
    begin, end = change - 2 * 3600, change + 4 * 3600 + gap_s
    return watch(zone, begin - 3600, end), begin, end


def walked(walk: Walk, begin: int, end: int) -> list[int]:
    """The fire times in [begin, end), from both ends."""
    forward, fire = [], walk.next(begin - 1)
    while fire is not None and fire < end:
        forward.append(int(fire))
        fire = walk.next(fire)
    backward, fire = [], walk.previous(end - 1)
    while fire is not None and fire >= begin:
        backward.append(int(fire))
        fire = walk.previous(fire - 1)
    assert backward[::-1] == forward
    return forward


@examples(5000)
@given(AT_NIGHT, st.sampled_from(ZONES), NUMBERS, GAPS, FOLDS)
def test_around_a_change_it_fires_when_a_watched_clock_says_so(
    expression: Expression, zone: str, number: int, gap: str, fold: str
) -> None:
    changes = transitions(zone)
    # So few for each zone that what was watched can be kept.
    changes = changes[:: max(1, len(changes) // 12)]
    change = changes[number % len(changes)] if changes else FIRST + number
    watched, begin, end = watched_around(zone, change)
    trigger = compiled(expression, tz=zone, dst_gap=gap, dst_fold=fold)
    assert trigger is not None
    expected = [at for at in fires(expression, watched, gap, fold) if begin <= at < end]
    assert walked(trigger._walk, begin, end) == expected


def daily(minute: Field, hour: Field) -> Expression:
    every_day, every_month, every_weekday = range(1, 32), range(1, 13), range(7)
    return Expression(
        minute, hour, *(Field("*", frozenset(each)) for each in (every_day, every_month, every_weekday))
    )


#: At fixed times, and such as follow the clock.
SAMPLE = [
    daily(Field("30", frozenset([30])), Field("2", frozenset([2]))),
    daily(Field("0", frozenset([0])), Field("0", frozenset([0]))),
    daily(Field("0,45", frozenset([0, 45])), Field("0-23", frozenset(range(24)))),
    daily(Field("*/7", frozenset(range(0, 60, 7))), Field("*", frozenset(range(24)))),
    daily(Field("15", frozenset([15])), Field("*/2", frozenset(range(0, 24, 2)))),
]


def compare_at_changes(zone: str) -> int:
    """Compare at every change of a zone, with each policy; the number of changes."""
    changes = transitions(zone)
    for change in changes:
        watched, begin, end = watched_around(zone, change)
        for expression in SAMPLE:
            for gap, fold in (("run", "first"), ("skip", "second"), ("shift", "both")):
                walk = Walk(parse_fields(str(expression), "", False), zone_table(zone), gap, fold)  # type: ignore[arg-type]  # str here, each one of its literals
                expected = [at for at in fires(expression, watched, gap, fold) if begin <= at < end]
                assert walked(walk, begin, end) == expected, (zone, change, str(expression), gap, fold)
                if expression.follows_clock:
                    break
    return len(changes)


@pytest.mark.parametrize("zone", ["Australia/Lord_Howe", "Pacific/Apia", "Africa/Monrovia", "Asia/Beirut"])
def test_at_every_change_of_a_zone_it_fires_when_a_watched_clock_says_so(zone: str) -> None:
    assert compare_at_changes(zone) > 1 or zone == "Africa/Monrovia"


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_in_every_zone_it_fires_when_a_watched_clock_says_so(part: int) -> None:
    for zone in sorted(available_timezones())[part::PARTS]:
        compare_at_changes(zone)


# -- the tables of zones ---------------------------------------------------------------------------------------------------


def offsets_of(table: ZoneTable, instants: Iterable[int]) -> list[int]:
    found = []
    for at in instants:
        window = table.around(at)
        found.append(window.offsets[window.segment(at)])
    return found


def compare_offsets(zone: str, step_s: int) -> None:
    info, instants = ZoneInfo(zone), range(FIRST, LAST, step_s)
    expected = [offset_at(info, at) for at in instants]
    assert offsets_of(ZoneTable(info), instants) == expected


@pytest.mark.parametrize("zone", ["Africa/Casablanca", "Asia/Gaza", "America/Sao_Paulo", "Pacific/Apia"])
def test_the_table_of_a_zone_has_the_offsets_of_zoneinfo(zone: str) -> None:
    compare_offsets(zone, 11 * 3600)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_the_table_of_every_zone_has_the_offsets_of_zoneinfo(part: int) -> None:
    for zone in sorted(available_timezones())[part::PARTS]:
        compare_offsets(zone, 5 * 3600)


@examples(2000)
@given(st.sampled_from(sorted(available_timezones())), INSTANTS)
def test_the_offset_of_any_zone_at_any_time_is_that_of_zoneinfo(zone: str, at: int) -> None:
    assert offsets_of(zone_table(zone), [at]) == [offset_at(ZoneInfo(zone), at)]


@pytest.mark.parametrize("zone", ZONES)
def test_the_table_changes_at_the_second_at_which_the_zone_does(zone: str) -> None:
    info = ZoneInfo(zone)
    for change in transitions(zone):
        around = [change - 1, change]
        assert offsets_of(zone_table(zone), around) == [offset_at(info, at) for at in around]
