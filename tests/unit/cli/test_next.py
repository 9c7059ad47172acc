"""``asyncsched next``: the coming fire times."""

import json
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from asyncsched import cron, parse_trigger
from asyncsched.coming import Coming, coming
from tests.unit.cli.asking import Answer, Cli, refusal


def fire_times(answer: Answer) -> list[datetime]:
    return [datetime.fromisoformat(one["fire_time"]) for one in json.loads(answer.stdout)["times"]]


def notes(trigger: str, zone: str, start: str, count: int) -> list[str]:
    """Each line's time and note, in short."""
    parsed, begin = parse_trigger(trigger), datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone))
    return [in_short(one) for one in coming(parsed.bind(begin.timestamp()), count, begin, zone)]


def in_short(one: Coming) -> str:
    return f"{one.at:%d %H:%M} {one.note.partition(': the clocks')[0]}".rstrip()


def test_the_coming_fire_times_are_those_of_the_trigger(cli: Cli) -> None:
    answer = cli("next", "0 9 * * mon-fri", "-n", "3", "--from", "2026-01-01T00:00:00Z", "--json")
    expected = cron("0 9 * * mon-fri").preview(3, datetime(2026, 1, 1, tzinfo=UTC))
    assert answer.returncode == 0
    assert fire_times(answer) == expected


def test_a_zone_is_that_of_the_expression_of_the_answer_and_of_a_naive_start(cli: Cli) -> None:
    answer = cli("next", "30 8 * * *", "--tz", "Asia/Tokyo", "--from", "2026-01-01T08:00", "-n", "1")
    assert answer.stdout.splitlines()[1:] == ["2026-01-01 08:30:00+09:00  Thu  in 30 min"]


def test_an_aware_start_keeps_its_own_offset(cli: Cli) -> None:
    answer = cli("next", "30 8 * * *", "--tz", "Asia/Tokyo", "--from", "2026-01-01T00:00+00:00", "-n", "1")
    assert answer.stdout.splitlines()[1:] == ["2026-01-02 08:30:00+09:00  Fri  in 23 h 30 min"]


def test_an_interval_counts_from_the_start(cli: Cli) -> None:
    answer = cli("next", "@every 90s", "--from", "2026-01-01T00:00", "-n", "2")
    assert answer.stdout.splitlines() == [
        "every 1 minute and 30 seconds",
        "2026-01-01 00:01:30+00:00  Thu  in 1 min 30 s",
        "2026-01-01 00:03:00+00:00  Thu  in 3 min",
    ]


def test_without_a_start_it_is_now(cli: Cli) -> None:
    before = datetime.now(UTC)
    [first, second] = fire_times(cli("next", "* * * * * *", "-n", "2", "--json"))
    assert 0 <= (first - before).total_seconds() + 1 < 20
    assert (second - first).total_seconds() == 1


NEVER = {
    "trigger": "@manual",
    "description": "only when it is told to",
    "warnings": [],
    "times": [],
    "skipped": [],
}


def test_what_never_fires_gives_nothing_and_says_so(cli: Cli) -> None:
    answer = cli("next", "@manual", "--json")
    assert (answer.returncode, json.loads(answer.stdout)) == (0, NEVER)
    assert answer.stderr == "'@manual' never fires by itself\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([""], "an empty string is no trigger"),
        (["@every now"], "90s, 5m or 1h30m"),
        (["@daily", "--tz", "Mars/Olympus"], "unknown time zone 'Mars/Olympus'"),
        (["@every 5m", "--tz", "Mars/Olympus"], "unknown time zone 'Mars/Olympus'"),
        (["@daily", "--from", "tomorrow"], "--from: 'tomorrow' is no ISO 8601 instant"),
        (["@every 5m", "--from", "9999-12-31"], "--from: '9999-12-31' is too far away"),
        (["@daily", "--from", "0001-01-01T00:00+14:00"], "is too far away: its year is one from 100 to 3500"),
    ],
)
def test_what_is_no_expression_zone_or_instant_is_one_clear_line(
    cli: Cli, args: list[str], said: str
) -> None:
    assert said in refusal(cli("next", *args))


@pytest.mark.parametrize(
    ("expression", "said", "mark"),
    [
        ("61 * * * *", "field 1 (minute): '61' is out of range; allowed: 0-59", "61"),
        ("0  9   1,32 * *", "field 3 (day of month): '32' is out of range; allowed: 1-31", "32"),
        ("0 9 * * mon,FUN", "field 5 (day of week): 'fun' is out of range", "FUN"),
        ("1,,2 * * * *", "has an empty place in its list", "1,,2"),
        ("CRON_TZ=Europe/Berlin 0 25 * * *", "field 2 (hour): '25' is out of range; allowed: 0-23", "25"),
        ("any_of(@daily; 0 25 * * *)", "field 2 (hour): '25' is out of range", "25"),
        ("0 0 1 2 3 4 5 6 7", "has 9 fields", "6"),
        ("TZ=Mars 0 0 * * *", "unknown time zone 'Mars'", "TZ=Mars"),
        ("DST_GAP=fly 0 0 * * *", "dst_gap must be one of run, skip, shift", "DST_GAP=fly"),
        ("@fortnightly", "unknown cron macro", "@fortnightly"),
        ("\uff11 * * * *", "is not written in ASCII", "\uff11"),
        ("0 " + "1," * 200 + "77 * * *", "'77' is out of range", "77"),
    ],
)
def test_the_field_at_fault_is_marked(cli: Cli, expression: str, said: str, mark: str) -> None:
    answer = cli("next", expression)
    assert (answer.returncode, answer.stdout) == (1, "")
    [why, shown, carets] = answer.stderr.splitlines()
    assert said in why
    assert len(shown) < 120
    # A full-width character takes two places of a terminal.
    begin = carets.index("^")
    assert shown[begin:].startswith(mark)
    assert carets.strip() == "^" * (2 * len(mark) if mark == "\uff11" else len(mark))


def test_a_missing_field_is_marked_behind_the_last_one(cli: Cli) -> None:
    answer = cli("next", "* * *")
    assert "has 3 fields" in answer.stderr
    assert answer.stderr.splitlines()[1:] == ["  * * *", "        ^"]


def test_the_plain_english_comes_first_and_notes_stand_beside_the_times(cli: Cli) -> None:
    answer = cli("next", "30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-28", "-n", "3")
    assert answer.stdout.splitlines() == [
        "at 02:30 every day, Europe/Berlin time",
        "2026-03-28 02:30:00+01:00  Sat  in 2 h 30 min",
        "2026-03-29 03:00:00+02:00  Sun  in 1 d 2 h     moved from 02:30: the clocks go from 02:00 to 03:00",
        "2026-03-30 02:30:00+02:00  Mon  in 2 d 1 h",
    ]


def test_what_is_skipped_has_a_line_and_a_warning_of_its_own(cli: Cli) -> None:
    args = ["30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-29", "-n", "1", "--dst-gap", "skip"]
    answer = cli("next", *args)
    assert answer.stdout.splitlines()[1:] == [
        "2026-03-29 02:30:00        Sun  -           skipped: the clocks go from 02:00 to 03:00",
        "2026-03-30 02:30:00+02:00  Mon  in 1 d 1 h",
    ]
    assert answer.stderr.startswith("note: does not run on days such as 2026-03-29, when the clocks")
    form = json.loads(cli("next", *args, "--json").stdout)
    assert form["skipped"] == [
        {"local_time": "2026-03-29T02:30:00", "note": "skipped: the clocks go from 02:00 to 03:00"}
    ]
    assert form["times"] == [{"fire_time": "2026-03-30T02:30:00+02:00", "note": None}]
    assert form["trigger"] == "CRON_TZ=Europe/Berlin DST_GAP=skip 30 2 * * *"
    assert len(form["warnings"]) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--dst-fold", "second"], ["2026-10-25T02:30:00+01:00"]),
        (["--dst-fold", "both"], ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"]),
        ([], ["2026-10-25T02:30:00+02:00"]),
    ],
)
def test_policies_are_options_too(cli: Cli, options: list[str], expected: list[str]) -> None:
    answer = cli(
        "next", "CRON_TZ=Europe/Berlin 30 2 25 10 *", "--from", "2026-10-24", "-n", str(len(expected)),
        *options, "--json",
    )  # fmt: skip
    assert fire_times(answer) == list(map(datetime.fromisoformat, expected))


def test_both_day_fields_must_match_where_that_is_asked_for(cli: Cli) -> None:
    answer = cli("next", "0 0 13 * fri", "--day", "and", "--from", "2026-01-01", "-n", "1", "--json")
    assert fire_times(answer) == [datetime(2026, 2, 13, tzinfo=UTC)]


def test_the_zone_of_the_expression_is_that_of_the_answer(cli: Cli) -> None:
    answer = cli("next", "TZ=Asia/Tokyo 30 8 * * *", "--from", "2026-01-01", "-n", "1")
    assert answer.stdout.splitlines()[1] == "2026-01-01 08:30:00+09:00  Thu  in 8 h 30 min"
    answer = cli("next", "@calendar days=1 at=08:30", "--tz", "Asia/Tokyo", "--from", "2026-01-01", "-n", "1")
    assert answer.stdout.splitlines()[1] == "2026-01-01 08:30:00+09:00  Thu  in 8 h 30 min"


SPRING, AUTUMN = "2026-03-28T12:00", "2026-10-25T00:00"
BERLIN = "CRON_TZ=Europe/Berlin"


@pytest.mark.parametrize(
    ("trigger", "zone", "start", "expected"),
    [
        (f"{BERLIN} 0,30 2 * * *", "Europe/Berlin", SPRING, ["29 03:00 moved from 02:00 and 02:30"]),
        (
            f"{BERLIN} DST_GAP=shift 0,30 2 * * *",
            "Europe/Berlin",
            SPRING,
            ["29 03:00 moved from 02:00", "29 03:30 moved from 02:30"],
        ),
        (
            f"{BERLIN} */10 2,3 * * *",
            "Europe/Berlin",
            SPRING,
            ["29 02:00 skipped 02:00 to 02:50", "29 03:00"],
        ),
        (
            f"{BERLIN} * 2,3 29 3 *",
            "Europe/Berlin",
            SPRING,
            ["29 02:00 skipped 02:00 to 02:59", "29 03:00"],
        ),
        (f"{BERLIN} 30 4 * * *", "Europe/Berlin", SPRING, ["29 04:30"]),
        # A fire time in the gap that lies outside of start and end is not missed.
        (
            f"{BERLIN} DST_GAP=skip START=2026-03-29T02:00:00Z 30 2 * * *",
            "Europe/Berlin",
            SPRING,
            ["30 02:30"],
        ),
        (
            "@calendar days=1 at=02:30 tz=Europe/Berlin",
            "Europe/Berlin",
            SPRING,
            ["29 03:00 moved from 02:30"],
        ),
        (f"any_of({BERLIN} 30 2 * * *; @manual)", "UTC", SPRING, ["29 01:00 moved from 02:30"]),
        (
            f"excluding({BERLIN} 30 2 * * *; 2026-03-28)",
            "Europe/Berlin",
            SPRING,
            ["29 03:00 moved from 02:30"],
        ),
        (
            "CRON_TZ=Pacific/Apia 0 12 * * *",
            "Pacific/Apia",
            "2011-12-29T12:00",
            ["31 00:00 moved from 2011-12-30 12:00"],
        ),
        (
            "CRON_TZ=Australia/Lord_Howe 15 2 4 10 *",
            "Australia/Lord_Howe",
            SPRING,
            ["04 02:30 moved from 02:15"],
        ),
        (
            f"{BERLIN} 30 2 * * *",
            "Europe/Berlin",
            AUTUMN,
            ["25 02:30 first pass of two; the other does not count", "26 02:30"],
        ),
        (
            f"{BERLIN} DST_FOLD=second 30 2 * * *",
            "Europe/Berlin",
            AUTUMN,
            ["25 02:30 second pass of two; the other does not count", "26 02:30"],
        ),
        (
            f"{BERLIN} 30 * * * *",
            "Europe/Berlin",
            "2026-10-25T01:00",
            ["25 01:30", "25 02:30 first pass of two", "25 02:30 second pass of two", "25 03:30"],
        ),
        ("@every 2h", "Europe/Berlin", "2026-10-25T00:30", ["25 02:30 first pass of two", "25 03:30"]),
        # A year between two of them.
        (
            f"{BERLIN} DST_GAP=skip 30 2 29 3 *",
            "Europe/Berlin",
            "2025-04-01",
            ["29 02:30 skipped", "29 02:30"],
        ),
    ],
)
def test_notes_say_what_the_clocks_do(trigger: str, zone: str, start: str, expected: list[str]) -> None:
    times = sum("skipped" not in line for line in expected)
    assert notes(trigger, zone, start, times) == expected


def test_clocks_of_another_zone_than_the_one_shown_are_named() -> None:
    begin = datetime(2026, 3, 28, 12, tzinfo=UTC)
    [one] = coming(parse_trigger(f"{BERLIN} 30 2 * * *"), 1, begin, "UTC")
    assert one.note == "moved from 02:30: the clocks of Europe/Berlin go from 02:00 to 03:00"


def test_distances_are_elapsed_time(cli: Cli) -> None:
    args = ["0 4 * * *", "--tz", "Europe/Berlin", "-n", "1", "--from"]
    assert cli("next", *args, "2026-03-29T00:00").stdout.endswith("in 3 h\n")
    assert cli("next", *args, "2026-10-25T00:00").stdout.endswith("in 5 h\n")
