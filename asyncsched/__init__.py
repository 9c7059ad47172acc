"""asyncsched: an asyncio-native job scheduler that keeps its promises."""

from asyncsched.contract import JobStore
from asyncsched.errors import *  # noqa: F403
from asyncsched.errors import __all__ as _errors
from asyncsched.events import (
    Event,
    JobAdded,
    JobEvent,
    JobExhausted,
    JobHandedBack,
    JobPausedEvent,
    JobQuarantined,
    JobRemoved,
    JobResumed,
    JobUpdated,
    RunCancelled,
    RunEvent,
    RunFailed,
    RunFinished,
    RunLost,
    RunSkipped,
    RunStarted,
    RunSucceeded,
    RunTimedOut,
    SchedulerEvent,
    SchedulerPaused,
    SchedulerResumed,
    SchedulerStarted,
    SchedulerStopped,
    StoreDegraded,
    StoreEvent,
    StoreRecovered,
    Subscription,
)
from asyncsched.execution import CurrentRun, current_run
from asyncsched.jobs import JobSpec
from asyncsched.model import (
    Carry,
    Decision,
    Finish,
    GiveUp,
    Job,
    Receipt,
    Retention,
    Retry,
    RetryLater,
    Run,
    Snooze,
    Stats,
)
from asyncsched.registry import Call, Task
from asyncsched.scheduler import Scheduler
from asyncsched.stores import store_from_url
from asyncsched.stores.memory import MemoryStore
from asyncsched.triggers import Cron, Every, Manual, Once, Trigger, cron, every, manual, once, parse_trigger
from asyncsched.values import DataSerializer, PickleSerializer, Serializer

__version__ = "0.1.0"
