"""What users do to a stored job: each edit is a pure step from its record to the update that makes it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from asyncsched.codec import decode_cursor, decode_definition, encode
from asyncsched.contract import Record, Update
from asyncsched.definition import MAX_REQUESTS, Cursor, Definition, Policies, Request
from asyncsched.errors import DefinitionError, JobPaused, TooManyRequests
from asyncsched.ids import check_name, is_limit
from asyncsched.jobs import Composer
from asyncsched.plan import has_ended, is_done, next_fire, next_request, synced, wake_of
from asyncsched.registry import Task
from asyncsched.rules import places_of
from asyncsched.specs import (
    EDITABLE,
    POLICY_NAMES,
    TriggerLike,
    bound_trigger,
    checked_args,
    checked_label,
    checked_mapping,
    checked_priority,
    checked_tags,
    policies_from,
)
from asyncsched.triggers import AnyTrigger, Manual, Once

__all__ = ["Editor"]


class Editor:
    """Each edit gives the update that makes it, or None where nothing would change."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer

    def merge(self, record: Record, wanted: Record, written: Definition, now: float) -> Update | None:
        """The stored job as it is now wanted: an unchanged trigger keeps its progress, and a pause stays, but for the one of a
        job that had gone from the code."""
        old = decode_definition(record.body)
        is_back = written.declared is not None and old.declared is not None and old.declared.gone
        if is_back and old.paused and (back := self.resume(record, now)) is not None:
            record = replace(record, body=back.body, hold=back.hold, wake_at=back.wake_at)
            old = decode_definition(record.body)
        same_trigger = _is_same(old.trigger, written.trigger, is_declared=written.declared is not None)
        new = replace(
            written,
            created_at=old.created_at,
            updated_at=old.updated_at,
            trigger=old.trigger if same_trigger else written.trigger,
            rev=old.rev if same_trigger else record.version + 1,
            first=old.first if same_trigger else written.first,
            paused=old.paused or written.paused,
            resumed=old.resumed if same_trigger else _unwritten(old, decode_cursor(record.cursor)),
            requests=old.requests,
            cancel=old.cancel,
            flows=old.flows,
            places=self._places(old, written.policies),
        )
        placed = (record.queue, record.priority, record.task) == (wanted.queue, wanted.priority, wanted.task)
        if new == old and placed:
            return None
        update = self._update(record, replace(new, updated_at=now), now, clear=not same_trigger)
        return replace(update, queue=wanted.queue, priority=wanted.priority, task=wanted.task)

    def edit(
        self, record: Record, task: Task[..., Any] | None, changes: Mapping[str, Any], now: float
    ) -> Update:
        """Some fields of a job changed."""
        old = decode_definition(record.body)
        fields: dict[str, Any] = {"updated_at": now}
        policies = {name: value for name, value in changes.items() if name in POLICY_NAMES}
        unknown = set(changes) - POLICY_NAMES - EDITABLE
        if unknown:
            raise DefinitionError(
                f"update_job() cannot change {', '.join(sorted(unknown))}; it can change "
                f"{', '.join(sorted(EDITABLE | POLICY_NAMES))}",
                job_id=record.id,
            )
        if policies:
            given = policies_from(policies)
            fields["policies"] = replace(old.policies, **{name: getattr(given, name) for name in policies})
            if given.concurrency_limit is not None:
                self._composer.check_key(fields["policies"], record.id)
            fields["places"] = self._places(old, fields["policies"])
        if "args" in changes or "kwargs" in changes:
            fields["args"] = self._new_arguments(old, task, changes)
        if "name" in changes:
            fields["name"] = checked_label(changes["name"])
        if "tags" in changes:
            fields["tags"] = checked_tags(changes["tags"])
        if "metadata" in changes:
            fields["metadata"] = self._composer.packed(changes["metadata"])
        clear = "trigger" in changes
        if clear:
            trigger = _bound(changes["trigger"], now, record.id)
            if not _is_same(old.trigger, trigger):
                fields |= {
                    "trigger": trigger,
                    "rev": record.version + 1,
                    "first": _first_of(trigger, now, record.id),
                }
                fields["resumed"] = _unwritten(old, decode_cursor(record.cursor))
        new = replace(old, **fields)
        if "max_runs" in changes:
            _check_max_runs(record, new)
        update = self._update(record, new, now, clear=clear)
        priority = checked_priority(changes.get("priority", record.priority), record.id)
        queue = check_name(changes.get("queue", record.queue), "a queue's name")
        return replace(update, queue=queue, priority=priority)

    def _places(self, old: Definition, policies: Policies) -> int:
        """The children that are there still are found by it under policies that allow fewer."""
        rules = self._composer.rules_of
        most = max(old.places, places_of(rules(old.policies)))
        return most if most > places_of(rules(policies)) else 0

    def _new_arguments(
        self, old: Definition, task: Task[..., Any] | None, changes: Mapping[str, Any]
    ) -> bytes:
        args, kwargs = self._composer.values(old)
        args = checked_args(changes.get("args", args))
        kwargs = checked_mapping(changes.get("kwargs", kwargs), "kwargs")
        if task is not None:
            task.signature.check(args, kwargs)
        return self._composer.arguments(args, kwargs)

    def reschedule(self, record: Record, trigger: TriggerLike, now: float) -> Update:
        """Another trigger: fire times are computed anew, and what was pending for the old one is forgotten."""
        old = decode_definition(record.body)
        bound = _bound(trigger, now, record.id)
        resumed = _unwritten(old, decode_cursor(record.cursor))
        new = replace(
            old,
            updated_at=now,
            trigger=bound,
            rev=record.version + 1,
            first=_first_of(bound, now, record.id),
            resumed=resumed,
        )
        return self._update(record, new, now, clear=True)

    def pause(self, record: Record, now: float) -> Update | None:
        old = decode_definition(record.body)
        if old.paused and (record.hold == "paused" or record.holder is not None):
            return None
        # From now on it rests because a user said so, also if it had gone from the code before.
        mark = None if old.declared is None else replace(old.declared, gone=False)
        return self._update(record, replace(old, updated_at=now, paused=True, declared=mark), now, clear=True)

    def retire(self, record: Record, now: float) -> Update | None:
        """The pause of a job that has gone from the code; None where it rests already."""
        old = decode_definition(record.body)
        if old.paused or old.declared is None or old.declared.gone:
            return None
        gone = replace(old, updated_at=now, paused=True, declared=replace(old.declared, gone=True))
        return self._update(record, gone, now, clear=True)

    def resume(self, record: Record, now: float) -> Update | None:
        """No backlog: a recurring job takes its next fire time from now, and what passed is one decision."""
        old, stored = decode_definition(record.body), decode_cursor(record.cursor)
        cursor = synced(old, stored)
        is_over = has_ended(old, cursor) and record.hold != "quarantined"
        rests = cursor.over is not None and not is_over
        if not (old.paused or rests) and (record.hold is None or is_limit(record.hold)):
            return None
        new = replace(old, updated_at=now, paused=False)
        if is_over:
            # It ran to its end while it was paused, and is there only to be removed, or to be run once more on request.
            pass
        elif not old.trigger.recurs:
            if next_fire(cursor) is None:
                new = replace(new, rev=record.version + 1, first=now)
        elif old.trigger.is_backfill:
            # All of its fire times are past; it goes on where it was.
            fire = cursor.next if cursor.pending is None else cursor.pending.fire
            new = replace(new, rev=record.version + 1, first=fire, resumed=None)
        elif not rests and _is_under_way(record, old, cursor, now):
            # It has been so since before the rest: overlap= says what becomes of the fire times that came meanwhile.
            pass
        elif old.paused or rests or record.hold == "paused":
            first, passed = _resumed(old.trigger, cursor, now, is_held=record.holder is not None)
            resumed = _joined(_unwritten(old, stored), passed)
            new = replace(new, rev=record.version + 1, first=first, resumed=resumed)
        return self._update(record, new, now, clear=True)

    def request(self, record: Record, now: float, *, force: bool) -> Update:
        """One more run, now; the schedule stays as it is."""
        old = decode_definition(record.body)
        if (old.paused or record.hold == "paused") and not force:
            raise JobPaused(
                f"job {record.id!r} is paused; resume it, or run_job(..., force=True)", job_id=record.id
            )
        done = decode_cursor(record.cursor).request
        waiting = tuple(request for request in old.requests if request.no > done)
        if len(waiting) >= MAX_REQUESTS:
            raise TooManyRequests(
                f"job {record.id!r} has {len(waiting)} run requests pending already; wait for it",
                job_id=record.id,
            )
        new = replace(old, requests=(*waiting, Request(record.version + 1, now, force)))
        update = self._update(record, new, now, clear=record.hold in ("failed", "quarantined"))
        return replace(update, wake_at=now)

    def cancel(self, record: Record, now: float) -> Update:
        """The end of the run that holds it now."""
        return self._update(
            record, replace(decode_definition(record.body), cancel=record.fence), now, clear=False
        )

    def _update(self, record: Record, new: Definition, now: float, *, clear: bool) -> Update:
        """The update that writes *new*. Without *clear* a record that is held back stays so."""
        cursor = synced(new, decode_cursor(record.cursor))
        hold = _rest_of(new, cursor)
        wake_at = wake_of(new, cursor, now, self._composer.rules_of(new.policies), (record.id, record.birth))
        if record.hold is not None and not clear:
            # Who waits under a limit asks again, since the limit may be another now.
            hold, wake_at = (None, now) if is_limit(record.hold) else (record.hold, record.wake_at)
        return Update(
            id=record.id,
            version=record.version,
            body=encode(new),
            queue=record.queue,
            priority=record.priority,
            wake_at=wake_at,
            hold=hold,
        )


_Passed = tuple[float, float, int, bool]


def _is_under_way(record: Record, definition: Definition, cursor: Cursor, now: float) -> bool:
    """Whether a run under way decides about all that came in a rest, or nothing came while a retry waited."""
    nothing_came = cursor.next is None or cursor.next > now
    if record.holder is not None:
        return nothing_came or next_request(definition, cursor) is None
    return nothing_came and cursor.pending is not None and cursor.pending.failed > 0


def _resumed(
    trigger: AnyTrigger, cursor: Cursor, now: float, *, is_held: bool
) -> tuple[float | None, _Passed | None]:
    """The first fire time after a rest, and what passed in it; where nothing did, what had been put off and has not been run."""
    fire, pending = cursor.next, cursor.pending
    is_put_off = pending is not None and not (pending.request or pending.failed or is_held)
    if fire is None or fire > now:
        passed = (pending.fire, pending.fire, 1, False) if pending is not None and is_put_off else None
        return fire, passed
    more = trigger.passed(fire, now)
    last = fire if more.last is None else more.last
    return more.next, (fire, last, more.count + 1, more.more)


def _unwritten(definition: Definition, stored: Cursor) -> _Passed | None:
    """What passed in a rest, where no settlement has written it down yet."""
    return definition.resumed if stored.rev != definition.rev else None


def _joined(earlier: _Passed | None, later: _Passed | None) -> _Passed | None:
    if earlier is None or later is None:
        return earlier or later
    return (earlier[0], later[1], earlier[2] + later[2], earlier[3] or later[3])


def _rest_of(definition: Definition, cursor: Cursor) -> str | None:
    """Why a job rests, if it does: a user's pause, or that its last run has ended so."""
    if is_done(definition, cursor):
        return None
    if definition.paused:
        return "paused"
    if cursor.over is None or next_request(definition, cursor) is not None:
        return None
    return cursor.over[0]


def _bound(trigger: TriggerLike, now: float, id: str) -> AnyTrigger:
    """The trigger that a job is given instead of its own: none at all is no trigger, and never a run now and then its end."""
    if trigger is None:
        raise DefinitionError(
            f"job {id!r} is given no trigger (None): name one, such as once() for a run now, or leave it to run_job() by "
            "manual()",
            job_id=id,
        )
    return bound_trigger(trigger, None, now, id)


def _check_max_runs(record: Record, new: Definition) -> None:
    """A number that was reached before would still let one more run."""
    most, runs = new.policies.max_runs, synced(new, decode_cursor(record.cursor)).runs
    if most is not None and new.trigger.recurs and runs >= most:
        raise DefinitionError(
            f"max_runs={most} of job {record.id!r} is reached, since {runs} fire times have run: give more, or end the job by "
            "remove_job() or pause_job()",
            job_id=record.id,
        )


def _is_same(old: AnyTrigger, new: AnyTrigger, *, is_declared: bool = False) -> bool:
    """Whether a job keeps its progress under the new one. A delay counts from the call that names it, so that each call asks for
    a run; one that is declared counts from when its job was added."""
    return old == new if isinstance(new, Once) and not is_declared else old.unbound() == new.unbound()


def _first_of(trigger: AnyTrigger, now: float, id: str) -> float | None:
    """The first fire time of a job that is given this trigger now."""
    first = trigger.first(now)
    if first is None and not isinstance(trigger, Manual):
        raise DefinitionError(
            f"the trigger {trigger} will never fire, which would be the end of job {id!r}: remove_job() ends it, "
            "pause_job() lets it rest, and manual() leaves it to run_job()",
            job_id=id,
        )
    return first
