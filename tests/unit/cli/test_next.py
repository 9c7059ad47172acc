"""``asyncsched next``: the coming fire times."""

import json
from datetime import UTC, datetime

import pytest

from asyncsched import cron
from tests.unit.cli.asking import Cli, refusal


def test_the_coming_fire_times_are_those_of_the_trigger(cli: Cli) -> None:
    answer = cli("next", "0 9 * * mon-fri", "-n", "3", "--from", "2026-01-01T00:00:00Z", "--json")
    expected = cron("0 9 * * mon-fri").preview(3, datetime(2026, 1, 1, tzinfo=UTC))
    assert answer.returncode == 0
    assert [datetime.fromisoformat(text) for text in json.loads(answer.stdout)] == expected


def test_a_zone_is_that_of_the_expression_of_the_answer_and_of_a_naive_start(cli: Cli) -> None:
    answer = cli("next", "30 8 * * *", "--tz", "Asia/Tokyo", "--from", "2026-01-01T08:00", "-n", "1")
    assert answer.stdout == "2026-01-01 08:30:00+09:00  Thu  in 30 min\n"


def test_an_aware_start_keeps_its_own_offset(cli: Cli) -> None:
    answer = cli("next", "30 8 * * *", "--tz", "Asia/Tokyo", "--from", "2026-01-01T00:00+00:00", "-n", "1")
    assert answer.stdout == "2026-01-02 08:30:00+09:00  Fri  in 23 h 30 min\n"


def test_an_interval_counts_from_the_start(cli: Cli) -> None:
    answer = cli("next", "@every 90s", "--from", "2026-01-01T00:00", "-n", "2")
    assert answer.stdout.splitlines() == [
        "2026-01-01 00:01:30+00:00  Thu  in 1 min 30 s",
        "2026-01-01 00:03:00+00:00  Thu  in 3 min",
    ]


def test_without_a_start_it_is_now(cli: Cli) -> None:
    before = datetime.now(UTC)
    [first, second] = map(
        datetime.fromisoformat, json.loads(cli("next", "* * * * * *", "-n", "2", "--json").stdout)
    )
    assert 0 <= (first - before).total_seconds() + 1 < 20
    assert (second - first).total_seconds() == 1


def test_what_never_fires_gives_nothing_and_says_so(cli: Cli) -> None:
    answer = cli("next", "@manual", "--json")
    assert (answer.returncode, json.loads(answer.stdout)) == (0, [])
    assert answer.stderr == "'@manual' never fires by itself\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["61 * * * *"], "bad cron expression '61 * * * *'"),
        (["* * *"], "has 3 fields"),
        ([""], "an empty string is no trigger"),
        (["@every now"], "90s, 5m or 1h30m"),
        (["@daily", "--tz", "Mars/Olympus"], "unknown time zone 'Mars/Olympus'"),
        (["@every 5m", "--tz", "Mars/Olympus"], "unknown time zone 'Mars/Olympus'"),
        (["@daily", "--from", "tomorrow"], "--from: 'tomorrow' is no ISO 8601 instant"),
    ],
)
def test_what_is_no_expression_zone_or_instant_is_one_clear_line(
    cli: Cli, args: list[str], said: str
) -> None:
    assert said in refusal(cli("next", *args))
