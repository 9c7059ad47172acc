"""The policies that count for a job: its own, else the scheduler's defaults, else these."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from asyncsched.definition import JitterForm, Policies
from asyncsched.model import CatchUp, Overlap

__all__ = ["DEFAULT_RULES", "Rules", "family_of", "places_of", "rules_of"]


class Rules(msgspec.Struct, frozen=True, gc=False):
    """What plan goes by. Seconds throughout."""

    #: A fire time that starts later than this after it was due does not run; None: however late.
    misfire_grace: float | None = None
    catch_up: CatchUp = "latest"
    #: How many fire times are caught up with, or queue behind a run; the newest are kept.
    max_catch_up: int = 100
    overlap: Overlap = "skip"
    #: How many runs an overlapping job may have under way.
    max_instances: int = 10
    jitter: JitterForm | None = None
    max_runs: int | None = None
    pause_after_failures: int | None = None
    concurrency_key: str | None = None
    #: How many runs with the key may be under way; None: one.
    concurrency_limit: int | None = None
    rate_limit: str | None = None
    #: Whether a key or a rate holds for it.
    is_limited: bool = False

    def due(self, key: tuple[str, str], fire: float, following: float | None) -> float:
        """When the fire time is due: jitter later, but before the one that follows it."""
        if self.jitter is None:
            return fire
        delay = self.jitter.seconds * _spread(key, fire, self.jitter.random)
        if following is not None:
            delay = min(delay, max(following - fire - 1e-6, 0.0))
        return round(fire + delay, 6)


DEFAULT_RULES = Rules()
_FIELDS = tuple(name for name in Rules.__struct_fields__ if name in Policies.__struct_fields__)


def rules_of(policies: Policies, defaults: Mapping[str, Any]) -> Rules:
    """The rules of a job."""
    given = {name: value for name in _FIELDS if (value := getattr(policies, name)) is not None}
    inherited = {name: defaults[name] for name in _FIELDS if defaults.get(name) is not None}
    merged = {**inherited, **given}
    return Rules(**merged, is_limited="concurrency_key" in merged or "rate_limit" in merged)


def places_of(rules: Rules) -> int:
    """How many children a job may have: one for each of its runs that may overlap."""
    return rules.max_instances if rules.overlap == "allow" else 0


def family_of(id: str, places: int) -> list[str]:
    """The ids that so many children have."""
    return [f"{id}#{n}" for n in range(places)]


def _spread(key: tuple[str, str], fire: float, is_random: bool) -> float:
    """A number in [0, 1): by the job's id and the fire time; *is_random*: by its birth as well, which nobody chose."""
    text = f"{key[0]}\0{round(fire * 1e6)}\0{key[1] if is_random else ''}"
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "big") / (
        1 << 56
    )
