"""Every error that asyncsched raises, in one tree.

::

    AsyncSchedError
    ├── SchedulerError
    │   ├── AlreadyRunning           a second start()
    │   ├── NotRunning               use before start() or after stop()
    │   └── WrongLoopError           awaited in another event loop than the one that started it
    ├── DefinitionError (ValueError) an argument that can never work, refused before anything is written
    │   ├── TriggerError
    │   │   └── CronError
    │   ├── TransientJobError        a function without a lasting name, in a store that outlives the process
    │   └── SerializationError       a value that cannot be stored, or stored bytes that cannot be read
    │       └── NewerFormatError     written by a newer version of asyncsched
    ├── LookupFailed (LookupError)
    │   ├── JobLookupError
    │   ├── RunLookupError
    │   ├── UnknownTaskError
    │   ├── UnknownStoreError
    │   └── NoCurrentRun             current_run() outside of a run
    ├── ConflictError
    │   ├── ConflictingIdError       a job of that id is already stored
    │   ├── ConflictingTaskError     a task of that name is already registered
    │   ├── JobPaused                run_job() of a paused job without force=True
    │   └── TooManyRequests          more run requests are pending on one job than it may hold
    ├── StoreError                   the store answered, and refused for good
    │   ├── StoreUnavailable         the store did not answer, or the outcome is unknown: repeat the call
    │   └── SchemaError              the stored schema is missing or of a version this code cannot use
    ├── MissingExtra (ImportError)   a package is not installed; the message names the pip command
    ├── LeaseLost                    the run no longer holds its job, so it cannot commit
    └── RunTimeout (TimeoutError)    a run took longer than its timeout

Raised by tasks to steer their own run (they are not failures, so they stand outside of the tree of errors):
``RetryLater``, ``GiveUp``, ``Snooze`` and ``Finish`` in :mod:`asyncsched.model`.
"""

from __future__ import annotations

__all__ = [
    "AlreadyRunning",
    "AsyncSchedError",
    "ConflictError",
    "ConflictingIdError",
    "ConflictingTaskError",
    "CronError",
    "DefinitionError",
    "JobLookupError",
    "JobPaused",
    "LeaseLost",
    "LookupFailed",
    "MissingExtra",
    "NewerFormatError",
    "NoCurrentRun",
    "NotRunning",
    "RunLookupError",
    "RunTimeout",
    "SchedulerError",
    "SchemaError",
    "SerializationError",
    "StoreError",
    "StoreUnavailable",
    "TooManyRequests",
    "TransientJobError",
    "TriggerError",
    "UnknownStoreError",
    "UnknownTaskError",
    "WrongLoopError",
]


class AsyncSchedError(Exception):
    """The root: ``except AsyncSchedError`` catches whatever this package raises.

    ``job_id``, ``store`` (its alias) and ``task`` (its name) say what the error is about, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        store: str | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.store = store
        self.task = task


class SchedulerError(AsyncSchedError):
    """The scheduler is not in the state that the call needs."""


class AlreadyRunning(SchedulerError):
    """start() of a scheduler that runs already."""


class NotRunning(SchedulerError):
    """A call that needs a started scheduler."""


class WrongLoopError(SchedulerError):
    """A call from another event loop than the one the scheduler runs in; use ``scheduler.from_thread``."""


class DefinitionError(AsyncSchedError, ValueError):
    """An argument that can never work. Nothing was written."""


class TriggerError(DefinitionError):
    """A trigger that can never fire as written, or one that failed while it computed a fire time."""


class CronError(TriggerError):
    """A cron expression that does not parse; ``field``, ``position`` (from 1), ``value`` and ``allowed`` say where and why."""

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        position: int | None = None,
        value: str | None = None,
        allowed: str | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.position = position
        self.value = value
        self.allowed = allowed


class TransientJobError(DefinitionError):
    """A lambda, local function, bound method or partial, in a store that outlives this process."""


class SerializationError(DefinitionError):
    """A value that cannot be stored, with the path to it; or stored bytes that cannot be read."""


class NewerFormatError(SerializationError):
    """Stored by a newer version of asyncsched; it is left for an instance that can read it."""


class LookupFailed(AsyncSchedError, LookupError):
    """Something named does not exist."""


class JobLookupError(LookupFailed):
    """No job of that id is stored."""


class RunLookupError(LookupFailed):
    """No run of that id is in the history."""


class UnknownTaskError(LookupFailed):
    """No task of that name is registered with this scheduler."""


class UnknownStoreError(LookupFailed):
    """No store of that alias is known, or no store serves that URL scheme."""


class NoCurrentRun(LookupFailed):
    """current_run() was called outside of a run."""


class ConflictError(AsyncSchedError):
    """What was asked for collides with what is there."""


class ConflictingIdError(ConflictError):
    """A job of that id is already stored, and on_conflict is "error"."""


class ConflictingTaskError(ConflictError):
    """A task of that name is already registered."""


class JobPaused(ConflictError):
    """run_job() of a paused job; ``force=True`` runs it all the same."""


class TooManyRequests(ConflictError):
    """One job has as many pending run requests as it may hold."""


class StoreError(AsyncSchedError):
    """The store answered, and refused for good: repeating the call will not help."""


class StoreUnavailable(StoreError):
    """The store did not answer, or its answer was lost. The call may be repeated as it was."""


class SchemaError(StoreError):
    """The stored schema is missing, or of a version that this code cannot use."""


class MissingExtra(AsyncSchedError, ImportError):
    """An optional package is not installed; the message names the pip command."""


class LeaseLost(AsyncSchedError):
    """The run no longer holds its job: another instance has it, or it was revoked or removed. Nothing was committed."""


class RunTimeout(AsyncSchedError, TimeoutError):
    """A run took longer than its ``timeout``."""
