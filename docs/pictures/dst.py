"""Draws what becomes of cron jobs where clocks are changed: ``python docs/pictures/dst.py`` writes the SVG files beside it.

Every mark is a fire time that a trigger of asyncsched names; nothing is drawn by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from zoneinfo import ZoneInfo

from asyncsched import Cron, Trigger, cron

HERE = Path(__file__).resolve().parent

WIDTH = 880
#: Where the axis begins and ends; the names of the rows stand before it, the fire times behind.
LEFT, RIGHT = 236, 616
TOP, ROW, FOOT = 92, 34, 18

INK, SOFT, LINE, GROUND = "#1f2933", "#616e7c", "#cbd2d9", "#ffffff"
FIRE, LOST, GAP, FIRST, SECOND = "#0b69a3", "#ba2525", "#f3d9d9", "#dcecf7", "#fbeecb"
SANS = "font-family='Helvetica, Arial, DejaVu Sans, sans-serif'"
MONO = "font-family='Menlo, Consolas, DejaVu Sans Mono, monospace'"


@dataclass(frozen=True)
class Change:
    """One change of the clocks: the instant, what they show before and after it, and the jobs that are looked at."""

    at: datetime
    zone: str
    fixed: str
    follower: str
    #: Minutes that are drawn before and after it, and between two ticks.
    before: int
    after: int
    tick: int

    @property
    def old(self) -> datetime:
        """What the clocks would show at the change; naive."""
        return _naive(self.at, self._offset(-1))

    @property
    def new(self) -> datetime:
        """What they show; naive."""
        return _naive(self.at, self._offset(0))

    @property
    def length(self) -> timedelta:
        """Of the gap or of the fold."""
        return abs(self.new - self.old)

    def _offset(self, seconds: int) -> timedelta:
        offset = (self.at + timedelta(seconds=seconds)).astimezone(ZoneInfo(self.zone)).utcoffset()
        assert offset is not None
        return offset

    def offset_text(self, seconds: int) -> str:
        moment = (self.at + timedelta(seconds=seconds)).astimezone(ZoneInfo(self.zone))
        return moment.isoformat()[19:]


@dataclass(frozen=True)
class Row:
    """One line of a picture: a trigger, what it is called, and its fire times in the picture."""

    name: str
    note: str
    trigger: Trigger
    fires: list[datetime]


def _naive(at: datetime, offset: timedelta) -> datetime:
    return (at + offset).replace(tzinfo=None)


CHANGES = {
    "berlin": (
        Change(datetime(2026, 3, 29, 1, tzinfo=UTC), "Europe/Berlin", "30 2 * * *", "*/30 * * * *", 90, 150, 60),
        Change(datetime(2026, 10, 25, 1, tzinfo=UTC), "Europe/Berlin", "30 2 * * *", "*/30 * * * *", 120, 120, 60),
    ),
    "lord-howe": (
        Change(datetime(2026, 10, 3, 15, 30, tzinfo=UTC), "Australia/Lord_Howe", "15 2 * * *", "*/15 * * * *", 60, 90, 30),
        Change(datetime(2026, 4, 4, 15, tzinfo=UTC), "Australia/Lord_Howe", "45 1 * * *", "*/15 * * * *", 75, 75, 30),
    ),
    "sao-paulo": (
        Change(datetime(2018, 11, 4, 3, tzinfo=UTC), "America/Sao_Paulo", "30 0 * * *", "*/30 * * * *", 90, 150, 60),
        Change(datetime(2019, 2, 17, 2, tzinfo=UTC), "America/Sao_Paulo", "30 23 * * *", "*/30 * * * *", 120, 120, 60),
    ),
}  # fmt: skip


def pictures() -> dict[str, str]:
    """The text of each SVG file by its name."""
    return {f"{name}.svg": _sheet(gap, fold) for name, (gap, fold) in CHANGES.items()}


def _sheet(gap: Change, fold: Change) -> str:
    """A gap above a fold."""
    height = 2 * (TOP + 4 * ROW + FOOT)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' role='img'>",
        f"<title>What cron jobs do where the clocks of {gap.zone} are changed</title>",
        "<defs>",
        "<pattern id='gap' width='8' height='8' patternUnits='userSpaceOnUse' patternTransform='rotate(45)'>",
        f"<rect width='8' height='8' fill='{GAP}'/><line x1='0' y1='0' x2='0' y2='8' stroke='{GROUND}' stroke-width='4'/>",
        "</pattern>",
        f"<marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0,0.5 L8,4 L0,7.5 Z' fill='{FIRE}'/></marker>",
        "</defs>",
        f"<rect width='{WIDTH}' height='{height}' rx='8' fill='{GROUND}'/>",
        *_panel(_GapPanel(gap), 0),
        f"<line x1='24' x2='{WIDTH - 24}' y1='{height / 2:.1f}' y2='{height / 2:.1f}' stroke='{LINE}'/>",
        *_panel(_FoldPanel(fold), height // 2),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


# -- panels ----------------------------------------------------------------------------------------------------------------


class _GapPanel:
    """Along what the clocks show, so that the gap has a width."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.begin = change.old - timedelta(minutes=change.before)
        self.end = change.old + timedelta(minutes=change.after)
        self.title = f"the clocks skip from {change.old:%H:%M} to {change.new:%H:%M}"
        self.day = change.new

    def place(self, at: datetime) -> float:
        return self.place_local(at.replace(tzinfo=None))

    def place_local(self, local: datetime) -> float:
        return LEFT + (RIGHT - LEFT) * ((local - self.begin) / (self.end - self.begin))

    def rows(self) -> list[Row]:
        change = self.change
        policies = [
            (f'dst_gap="{policy}"', "default" if policy == "run" else "",
             cron(change.fixed, tz=change.zone, dst_gap=policy))
            for policy in ("run", "skip", "shift")
        ]  # fmt: skip
        return _rows(change, policies, self.change.before, self.change.after)

    def ground(self, y: float, height: float) -> Iterator[str]:
        left, right = self.place_local(self.change.old), self.place_local(self.change.new)
        yield _box(left, y, right - left, height, "url(#gap)")
        yield _text(
            (left + right) / 2, y - 26, "not shown" if right - left > 60 else "skipped", LOST, "middle", 11
        )
        yield _text(left - 6, y - 26, self.change.offset_text(-1), SOFT, "end", 11)
        yield _text(right + 6, y - 26, self.change.offset_text(0), SOFT, "start", 11)

    def ticks(self) -> Iterator[tuple[float, str]]:
        local = self.begin.replace(minute=0)
        while local <= self.end:
            if local >= self.begin:
                yield self.place_local(local), f"{local:%H:%M}"
            local += timedelta(minutes=self.change.tick)

    def lost(self, row: Row) -> list[float]:
        """Where the times stand that the trigger names and the clocks do not show."""
        assert isinstance(row.trigger, Cron)
        wall = cron(row.trigger.expression)
        named = wall.between(self.change.old.replace(tzinfo=UTC), self.change.new.replace(tzinfo=UTC))
        return [self.place(at) for at in named]

    def moved(self, row: Row) -> list[float]:
        """Where the fire times stand that no field of the expression names."""
        assert isinstance(row.trigger, Cron)
        wall = cron(row.trigger.expression)
        return [self.place(at) for at in row.fires if not wall.matches(at.replace(tzinfo=UTC))]


class _FoldPanel:
    """Along elapsed time, so that both passes have a width."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.begin = change.at - timedelta(minutes=change.before)
        self.end = change.at + timedelta(minutes=change.after)
        self.title = f"the clocks go back from {change.old:%H:%M} to {change.new:%H:%M}"
        self.day = change.old

    def place(self, at: datetime) -> float:
        at = at.astimezone(UTC)
        return LEFT + (RIGHT - LEFT) * ((at - self.begin) / (self.end - self.begin))

    def rows(self) -> list[Row]:
        change = self.change
        policies = [
            (f'dst_fold="{policy}"', "default" if policy == "first" else "",
             cron(change.fixed, tz=change.zone, dst_fold=policy))
            for policy in ("first", "second", "both")
        ]  # fmt: skip
        return _rows(change, policies, change.before, change.after)

    def ground(self, y: float, height: float) -> Iterator[str]:
        change = self.change
        edges = [self.place(change.at + step * change.length) for step in (-1, 0, 1)]
        for left, right, colour, name, seconds in (
            (edges[0], edges[1], FIRST, "first pass", -1),
            (edges[1], edges[2], SECOND, "second pass", 0),
        ):
            yield _box(left, y, right - left, height, colour)
            yield _text((left + right) / 2, y - 39, name, INK, "middle", 11)
            yield _text((left + right) / 2, y - 26, change.offset_text(seconds), SOFT, "middle", 11)
        yield _vertical(edges[1], y, height, SOFT, "3 3")

    def ticks(self) -> Iterator[tuple[float, str]]:
        at = self.begin
        while at <= self.end:
            local = at.astimezone(ZoneInfo(self.change.zone))
            if (local.hour * 60 + local.minute) % self.change.tick == 0:
                yield self.place(at), f"{local:%H:%M}"
            at += timedelta(minutes=15)

    def lost(self, row: Row) -> list[float]:
        """Where the passes stand that do not count."""
        assert isinstance(row.trigger, Cron)
        both = cron(row.trigger.expression, tz=self.change.zone, dst_fold="both")
        named = both.between(self.begin, self.end)
        return [self.place(at) for at in named if not row.trigger.matches(at)]

    def moved(self, row: Row) -> list[float]:
        return []


def _rows(change: Change, policies: list[tuple[str, str, Trigger]], before: int, after: int) -> list[Row]:
    policies = [*policies, (change.follower, "follows the clock", cron(change.follower, tz=change.zone))]
    begin = change.at - timedelta(minutes=before)
    end = begin + timedelta(minutes=before + after)
    if change.new > change.old:
        end -= change.length
    return [
        Row(name, note, trigger, trigger.between(begin, end + timedelta(seconds=1)))
        for name, note, trigger in policies
    ]


def _panel(panel: _GapPanel | _FoldPanel, top: int) -> Iterator[str]:
    change, rows = panel.change, panel.rows()
    y = top + TOP
    yield _text(
        24,
        top + 30,
        f"{change.zone}, {panel.day.day} {panel.day:%B %Y}: {panel.title}",
        INK,
        "start",
        15,
        bold=True,
    )
    yield from panel.ground(y, len(rows) * ROW)
    for x, label in panel.ticks():
        yield _vertical(x, y, len(rows) * ROW, LINE)
        yield _text(x, y - 9, label, INK, "middle", 12)
    yield _text(24, y - 9, f'cron("{change.fixed}")', INK, "start", 12, mono=True)
    yield _text(RIGHT + 36, y - 9, "runs at", SOFT, "start", 12)
    for number, row in enumerate(rows):
        yield from _row(panel, row, y + number * ROW + ROW / 2, number == len(rows) - 1)


def _row(panel: _GapPanel | _FoldPanel, row: Row, y: float, is_follower: bool) -> Iterator[str]:
    """Lost times as crosses or open circles, arrows from there to what runs instead, and the fire times."""
    if is_follower:
        edge = y - ROW / 2
        yield f"<line x1='24' x2='{WIDTH - 24}' y1='{edge:.1f}' y2='{edge:.1f}' stroke='{LINE}' stroke-dasharray='2 3'/>"
    name = f"<tspan {MONO}>{escape(row.name)}</tspan><tspan dx='7' fill='{SOFT}' font-size='11'>{escape(row.note)}</tspan>"
    yield f"<text x='24' y='{y + 4:.1f}' font-size='12' fill='{INK}' {SANS}>{name}</text>"
    yield f"<line x1='{LEFT}' x2='{RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='{LINE}'/>"
    moved = panel.moved(row)
    for number, x in enumerate(panel.lost(row)):
        if moved:
            target = moved[min(number, len(moved) - 1)]
            yield _arrow(x, target, y)
        yield _circle(x, y, GROUND, LOST)
        if not moved:
            yield f"<path d='M{x - 3:.1f},{y - 3:.1f} l6,6 m0,-6 l-6,6' stroke='{LOST}' stroke-width='1.6'/>"
    for at in row.fires:
        yield _circle(panel.place(at), y, FIRE, FIRE)
    yield _text(RIGHT + 36, y + 4, _summary(row, is_follower), INK if row.fires else LOST, "start", 12)


def _summary(row: Row, is_follower: bool) -> str:
    if is_follower:
        return "all that are shown"
    return " and ".join(f"{at:%H:%M}{at.isoformat()[19:]}" for at in row.fires) or "not at all"


# -- shapes ----------------------------------------------------------------------------------------------------------------


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    anchor: str,
    size: int,
    *,
    bold: bool = False,
    mono: bool = False,
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' text-anchor='{anchor}' font-size='{size}'{weight} "
        f"{MONO if mono else SANS}>{escape(text)}</text>"
    )


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' fill='{fill}'/>"


def _vertical(x: float, y: float, height: float, colour: str, dashes: str = "none") -> str:
    return f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y:.1f}' y2='{y + height:.1f}' stroke='{colour}' stroke-dasharray='{dashes}'/>"


def _circle(x: float, y: float, fill: str, stroke: str) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='6' fill='{fill}' stroke='{stroke}' stroke-width='1.6'/>"


def _arrow(begin: float, end: float, y: float) -> str:
    """A low arc from one mark to another."""
    middle = (begin + end) / 2
    return (
        f"<path d='M{begin:.1f},{y - 6:.1f} Q{middle:.1f},{y - 20:.1f} {end - 3:.1f},{y - 8:.1f}' fill='none' "
        f"stroke='{FIRE}' stroke-width='1.6' marker-end='url(#tip)'/>"
    )


def main() -> None:
    for name, text in pictures().items():
        (HERE / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
