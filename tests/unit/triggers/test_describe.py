"""Triggers in plain English."""

from datetime import UTC, date, datetime

import pytest

from asyncsched import Trigger, all_of, any_of, calendar, cron, every, excluding, manual, once, parse_trigger

AT = datetime(2026, 1, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("0 9 * * mon-fri", "at 09:00 on Monday to Friday"),
        ("30 4 * * *", "at 04:30 every day"),
        ("0 9,17 * * sat,sun", "at 09:00 and 17:00 on Saturday and Sunday"),
        ("*/15 9-17 * * 1-5", "every 15 minutes from 09:00 to 17:59 on Monday to Friday"),
        ("15 * * * *", "at minute 15 of every hour"),
        ("0 0 1 1,7 *", "at 00:00 on day 1 of January and July"),
        ("0 0 13 * fri", "at 00:00 on day 13 of every month and on Friday"),
        ("0 0 L * *", "at 00:00 on the last day of every month"),
        ("0 0 L-2 * *", "at 00:00 on the 3rd last day of every month"),
        ("0 0 15W * *", "at 00:00 on the weekday nearest to the 15th of every month"),
        ("0 0 LW * *", "at 00:00 on the last weekday from Monday to Friday of every month"),
        ("0 22 * * 5L", "at 22:00 on the last Friday of every month"),
        ("0 0 * * 2#1", "at 00:00 on the 1st Tuesday of every month"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("* * * * * *", "every second"),
        ("15 * * * * *", "at second 15 of every minute"),
        ("0 30 4 24 12 ? 2027-2030", "at 04:30 on day 24 of December in 2027 to 2030"),
        ("7 */2 * * *", "at minute 7 of every 2nd hour"),
        ("5-10,20 3 * * *", "at minutes 5 to 10 and 20 of hour 3"),
        ("0 12 * jun-aug *", "at 12:00 on every day of June to August"),
        ("DAY=and 0 0 13 * fri", "at 00:00 on day 13 of every month if it is Friday"),
        ("@weekly", "at 00:00 on Sunday"),
        ("TZ=Europe/Berlin 0 9 * * *", "at 09:00 every day, Europe/Berlin time"),
        ("TZ=local 0 9 * * *", "at 09:00 every day, local time"),
        ("@manual", "only when it is told to"),
    ],
)
def test_a_string_in_plain_english(text: str, expected: str) -> None:
    assert parse_trigger(text).describe() == expected


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (every(60), "every minute"),
        (every(minutes=90), "every 1 hour and 30 minutes"),
        (every(0.25), "every 0.25 seconds"),
        (
            every(days=1, start=AT, end=datetime(2027, 1, 1, tzinfo=UTC)),
            "every day, from 2026-01-01 09:00, until 2027-01-01 00:00",
        ),
        (every("5m", after="finish"), "5 minutes after the end of each run"),
        (once(AT), "once, at 2026-01-01 09:00:00 UTC"),
        (once(delay=90), "once, 1 minute and 30 seconds after it was added"),
        (once(), "once, when it was added"),
        (
            cron("0 9 * * *", tz="Asia/Tokyo", start=AT),
            "at 09:00 every day, Asia/Tokyo time, from 2026-01-01 18:00",
        ),
        (calendar(months=1, at="09:00"), "every month at 09:00"),
        (
            calendar(weeks=2, days=1, at="23:59:30", tz="Asia/Tokyo"),
            "every 2 weeks and 1 day at 23:59:30, Asia/Tokyo time",
        ),
        (
            calendar(months=1, start=date(2026, 1, 31)),
            "every month at 00:00 on day 31, in months that have it, from 2026-01-31",
        ),
        (
            calendar(years=1, start=date(2028, 2, 29), missing_day="last"),
            "every year at 00:00 on 29 February, or its last day, from 2028-02-29",
        ),
        (any_of(cron("@daily"), every(60)), "at 00:00 every day; or every minute"),
        (
            all_of(cron("@daily"), cron("@weekly")),
            "whenever these fall together: at 00:00 every day; and at 00:00 on Sunday",
        ),
        (
            excluding(cron("@daily"), cron("@weekly"), date(2026, 12, 24)),
            "at 00:00 every day, except on 2026-12-24 and at 00:00 on Sunday",
        ),
        (manual(), "only when it is told to"),
    ],
    ids=str,
)
def test_a_trigger_in_plain_english(trigger: Trigger, expected: str) -> None:
    assert trigger.describe() == expected
