"""What a survey and a migration tell."""

from __future__ import annotations

import msgspec

__all__ = ["Found", "Log", "Migration", "Survey"]

#: Of each finding so many ids are named in a message.
_NAMED = 5


class Found(msgspec.Struct, frozen=True):
    """How many there are of some kind, and the ids of the first."""

    count: int = 0
    ids: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        named = self.ids[:_NAMED]
        more = f" and {self.count - len(named)} more" if self.count > len(named) else ""
        return ", ".join(map(repr, named)) + more


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration would find. What counts is what is stored: jobs, their children, and marks of paused queues."""

    #: On the source, with a digest of their contents, whatever the order in which they are read.
    jobs: int
    digest: str
    #: Not on the target yet.
    to_add: int
    #: On the target as they are on the source.
    same: int
    #: On the target, of the same birth, and not as they are on the source.
    different: Found
    #: The target has another job under that id.
    taken: Found
    #: Copied before, and gone from the target since: its history has a later run. They are not copied again.
    ran: Found
    #: Held under leases that have not ended: instances are alive.
    live: Found
    #: The ids of instances that were seen on the source within three of their heartbeats; what they tell is not copied.
    instances: Found
    #: Larger than what the target can store.
    too_large: Found
    #: The highest fence among them, and their queues.
    fence: int
    queues: tuple[str, ...]
    target_is_empty: bool

    @property
    def is_clear(self) -> bool:
        """Whether a migration would be whole, as far as can be seen beforehand."""
        return not (self.different or self.taken or self.ran or self.live or self.instances or self.too_large)


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """The source's log, and how much of it the target has."""

    entries: int
    digest: str
    same: int
    target_digest: str
    missing: Found


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration did, and what the comparison afterwards found."""

    #: On the source.
    jobs: int
    digest: str
    #: Written to the target by this call.
    added: int
    #: On the target as they are on the source, and the digest of those.
    same: int
    target_digest: str
    #: As in ``Survey``.
    different: Found
    taken: Found
    ran: Found
    #: On the source and not on the target.
    missing: Found
    #: On the target and not on the source: its own, or removed from the source since they were copied.
    only_on_target: Found
    #: Copied before, and gone from the source since: its history has a later run. They would run again on the target.
    ran_on_source: Found
    target_was_empty: bool
    #: The source was changed between the first look and the last.
    has_changed: bool
    #: None: it was not asked for.
    history: Log | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the target has all that the source has, and nothing is in doubt."""
        is_same = not self.has_changed and self.digest == self.target_digest and self.jobs == self.same
        is_alone = not (self.ran_on_source or (self.target_was_empty and self.only_on_target))
        return is_same and is_alone and not (self.history and self.history.missing)
