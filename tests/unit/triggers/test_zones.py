"""The tables of zones: what they hold where one ends and the next begins, and which zones there are."""

from datetime import UTC, date, datetime, timedelta, tzinfo

import pytest

from asyncsched import TriggerError
from asyncsched.triggers.fields import parse_fields
from asyncsched.triggers.walk import FoldPolicy, Walk
from asyncsched.triggers.zones import ZoneTable, in_zone, local_ordinal, zone_of, zone_table

#: Where a table would begin if no clock were changed there.
EDGE = 56 * 366 * 86400
DAY = 86400


class ChangedOnce(tzinfo):
    """Two hours ahead of UTC, and one hour from an instant on."""

    def __init__(self, change: int) -> None:
        self._change = datetime.fromtimestamp(change, UTC).replace(tzinfo=None)

    def fromutc(self, moment: datetime) -> datetime:
        is_after = moment.replace(tzinfo=None) >= self._change
        local = moment + timedelta(hours=1 if is_after else 2)
        return local.replace(
            fold=int(is_after and local.replace(tzinfo=None) < self._change + timedelta(hours=2))
        )

    def utcoffset(self, moment: datetime | None) -> timedelta:
        assert moment is not None
        local = moment.replace(tzinfo=None, fold=0)
        is_repeated = self._change + timedelta(hours=1) <= local < self._change + timedelta(hours=2)
        is_after = bool(moment.fold) if is_repeated else local >= self._change + timedelta(hours=2)
        return timedelta(hours=1 if is_after else 2)

    def dst(self, moment: datetime | None) -> None:
        return None


@pytest.mark.parametrize("minutes", [-61, -60, -30, -1, 0, 1, 30])
@pytest.mark.parametrize("fold", ["first", "second", "both"])
def test_a_table_does_not_begin_or_end_within_a_change(minutes: int, fold: FoldPolicy) -> None:
    change = EDGE + 60 * minutes
    repeated = datetime.fromtimestamp(change, UTC) + timedelta(minutes=105)
    # In one year only, so that whoever comes from another year looks over the edge.
    text = f"0 {repeated.minute} {repeated.hour} {repeated.day} {repeated.month} ? {repeated.year}"
    walk = Walk(parse_fields(text, "", False), ZoneTable(ChangedOnce(change)), "run", fold)
    passes = {"first": [-900], "second": [2700], "both": [-900, 2700]}[fold]
    expected = [float(change + offset) for offset in passes]
    for away in (200 * DAY, 400 * DAY):
        found, fire = [], walk.next(EDGE - away)
        while fire is not None and fire < EDGE + DAY:
            found.append(fire)
            fire = walk.next(fire)
        assert found == expected
        found, fire = [], walk.previous(EDGE + away)
        while fire is not None and fire > EDGE - DAY:
            found.append(fire)
            fire = walk.previous(fire - 1)
        assert found[::-1] == expected


@pytest.mark.parametrize("name", ["Nowhere/Land", "", "../etc/passwd", "Europe/", "0", "utc+1"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(TriggerError, match="IANA"):
        zone_of(name)


def test_a_local_time_is_found_at_its_first_pass_or_after_its_gap() -> None:
    table = zone_table("Europe/Berlin")

    def instant(text: str) -> str:
        local = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        return in_zone(table.instant(int(local)), "Europe/Berlin").isoformat()

    assert instant("2026-03-29T02:30") == "2026-03-29T03:00:00+02:00"
    assert instant("2026-10-25T02:30") == "2026-10-25T02:30:00+02:00"
    assert instant("2026-07-01T00:00") == "2026-07-01T00:00:00+02:00"
    assert zone_table("UTC").instant(5) == 5


def test_days_are_those_of_the_zone() -> None:
    evening = datetime(2026, 1, 1, 20, tzinfo=UTC).timestamp()
    assert date.fromordinal(local_ordinal(evening, "Asia/Tokyo")) == date(2026, 1, 2)
    assert date.fromordinal(local_ordinal(evening, "UTC")) == date(2026, 1, 1)


def test_at_the_ends_of_the_calendar_instants_are_shown_in_utc() -> None:
    assert in_zone(1e18, "Asia/Tokyo").tzinfo is UTC
    assert in_zone(-1e18, "America/New_York").tzinfo is UTC
