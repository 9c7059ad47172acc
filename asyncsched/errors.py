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
    │   ├── WorkflowError            a workflow that cannot be run as it is written
    │   │   ├── CycleError           steps that wait for each other
    │   │   ├── UnknownStepError     a step comes after one that is not there
    │   │   ├── DuplicateStepError   two steps of one name
    │   │   ├── TwoFinalStepsError   more than one final step
    │   │   └── EmptyWorkflowError   no steps
    │   └── SerializationError       a value that cannot be stored, or stored bytes that cannot be read
    │       └── NewerFormatError     written by a newer version of asyncsched
    ├── LookupFailed (LookupError)
    │   ├── JobLookupError
    │   ├── RunLookupError
    │   ├── WorkflowLookupError      no execution of that id, or it was forgotten (``retention=``)
    │   ├── UnknownTaskError
    │   ├── UnknownStoreError
    │   ├── NoCurrentRun             current_run() outside of a run
    │   └── NoScheduler              a web application that no scheduler is attached to
    ├── ConflictError
    │   ├── ConflictingIdError       a job of that id is already stored
    │   ├── ConflictingTaskError     a task of that name is already registered
    │   ├── PlanOutdated             apply() of a plan, and the jobs have changed since it was made
    │   ├── JobNotRunning            cancel_job() or cancel_run() where no run is under way
    │   ├── JobPaused                run_job() of a paused job without force=True
    │   └── TooManyRequests          more run requests are pending on one job than it may hold
    ├── StoreError                   the store answered, and refused for good
    │   ├── StoreUnavailable         the store did not answer, or the outcome is unknown: repeat the call
    │   └── SchemaError              the stored schema is missing or of a version this code cannot use
    ├── MissingExtra (ImportError)   a package is not installed; the message names the pip command
    ├── PoolError                    a call that the pool can never make
    │   ├── PoolClosed               it takes no calls any more
    │   └── PoolFull                 as many calls wait as may
    ├── CommandFailed                a command ended with another exit code than expected, or could not be started
    ├── RequestFailed                an HTTP request had another answer than expected, or none
    │   └── RequestRefused           its address, redirect or URL is against the policy of the task; nothing was sent there
    ├── WaitTimeout (TimeoutError)   what was waited for has not come in time, and may still come
    ├── TaskFailed                   a run whose result was waited for did not succeed
    ├── WorkflowFailed               an execution whose results were waited for did not succeed
    ├── LockNotAcquired (TimeoutError)  a lock was held by others for as long as one would wait
    ├── LockNotHeld                  a lock was to be extended or released that is not held
    │   └── LockLost                 it can no longer be trusted; the block was cancelled
    ├── LeaseLost                    the run no longer holds its job, so it cannot commit
    └── RunTimeout (TimeoutError)    a run took longer than its timeout

Raised by tasks to steer their own run (they are not failures, so they stand outside of the tree of errors):
``RetryLater``, ``GiveUp``, ``Snooze``, ``Finish`` and ``Skip`` in :mod:`asyncsched.model`.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AlreadyRunning",
    "AsyncSchedError",
    "CommandFailed",
    "ConflictError",
    "ConflictingIdError",
    "ConflictingTaskError",
    "CronError",
    "CycleError",
    "DefinitionError",
    "DuplicateStepError",
    "EmptyWorkflowError",
    "JobLookupError",
    "JobNotRunning",
    "JobPaused",
    "LeaseLost",
    "LockLost",
    "LockNotAcquired",
    "LockNotHeld",
    "LookupFailed",
    "MissingExtra",
    "NewerFormatError",
    "NoCurrentRun",
    "NoScheduler",
    "NotRunning",
    "PlanOutdated",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "RequestFailed",
    "RequestRefused",
    "RunLookupError",
    "RunTimeout",
    "SchedulerError",
    "SchemaError",
    "SerializationError",
    "StoreError",
    "StoreUnavailable",
    "TaskFailed",
    "TooManyRequests",
    "TransientJobError",
    "TriggerError",
    "TwoFinalStepsError",
    "UnknownStepError",
    "UnknownStoreError",
    "UnknownTaskError",
    "WaitTimeout",
    "WorkflowError",
    "WorkflowFailed",
    "WorkflowLookupError",
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


class WorkflowError(DefinitionError):
    """A workflow that cannot be run as it is written; ``workflow`` is its name, ``steps`` the names of the steps at fault."""

    def __init__(self, message: str, *, workflow: str, steps: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.workflow = workflow
        self.steps = tuple(steps)


class CycleError(WorkflowError):
    """Steps that wait for each other: none of them could ever begin. ``steps`` is the circle, its first step again at its end."""


class UnknownStepError(WorkflowError):
    """A step comes after one that the workflow does not have."""


class DuplicateStepError(WorkflowError):
    """Two steps of one name."""


class TwoFinalStepsError(WorkflowError):
    """A workflow has one final step or none."""


class EmptyWorkflowError(WorkflowError):
    """A workflow without a step, or with a final one only."""


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


class WorkflowLookupError(LookupFailed):
    """No execution of a workflow has that id; it may have been forgotten, some time after its end."""


class UnknownTaskError(LookupFailed):
    """No task of that name is registered with this scheduler."""


class UnknownStoreError(LookupFailed):
    """No store of that alias is known, or no store serves that URL scheme."""


class NoCurrentRun(LookupFailed):
    """current_run() was called outside of a run."""


class NoScheduler(LookupFailed):
    """A web application was asked for its scheduler, and none is attached to it."""


class ConflictError(AsyncSchedError):
    """What was asked for collides with what is there."""


class ConflictingIdError(ConflictError):
    """A job of that id is already stored, and on_conflict is "error"; or two are declared under one id."""


class ConflictingTaskError(ConflictError):
    """A task of that name is already registered."""


class JobNotRunning(ConflictError):
    """cancel_job() or cancel_run() where no run is under way that it could end."""


class PlanOutdated(ConflictError):
    """apply() of a plan whose jobs have changed since it was made; the message names them."""


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


class LockNotAcquired(AsyncSchedError, TimeoutError):
    """A lock was held by others for as long as one was willing to wait."""


class LockNotHeld(AsyncSchedError):
    """A lock was to be extended or released by one that does not hold it."""


class LockLost(LockNotHeld):
    """A lock can no longer be trusted: its lease ended, or another holder has it. The block was cancelled."""


class TaskFailed(AsyncSchedError):
    """A run whose result was waited for failed, or was cancelled; ``run`` is what the history has of it."""

    def __init__(self, message: str, *, job_id: str, task: str, run: object) -> None:
        super().__init__(message, job_id=job_id, task=task)
        self.run = run


class WorkflowFailed(AsyncSchedError):
    """An execution of a workflow failed or was cancelled; ``status`` is the WorkflowStatus that says which steps did."""

    def __init__(self, message: str, *, status: object) -> None:
        super().__init__(message)
        self.status = status


class RunTimeout(AsyncSchedError, TimeoutError):
    """A run took longer than its ``timeout``."""


class WaitTimeout(AsyncSchedError, TimeoutError):
    """What was waited for has not come in time. It goes on, and may be waited for again."""


class PoolError(AsyncSchedError):
    """A pool was asked for what it cannot do."""


class PoolClosed(PoolError):
    """The pool takes no calls any more."""


class PoolFull(PoolError):
    """As many submitted calls wait for a worker as may."""


class CommandFailed(AsyncSchedError):
    """A command ended with another exit code than expected, or could not be started.

    ``exit_code`` is None where it was not started, and -n where signal n ended it; ``stdout`` and ``stderr`` are the ends of
    what it wrote.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        stdout: str = "",
        stderr: str = "",
        task: str | None = None,
    ) -> None:
        super().__init__(message, task=task)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


class RequestFailed(AsyncSchedError):
    """An HTTP request had another answer than expected, or none: then ``status`` is None.

    ``body`` is the beginning of the answer.
    """

    def __init__(
        self, message: str, *, status: int | None = None, body: str = "", task: str | None = None
    ) -> None:
        super().__init__(message, task=task)
        self.status = status
        self.body = body


class RequestRefused(RequestFailed):
    """An address, a redirect or a URL that the policy of the task does not allow. Nothing was sent there."""
