"""A scheduler in an aiohttp application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from asyncsched import MissingExtra, Scheduler
from asyncsched.integrations._life import NO_CACHE, Check, given, started
from asyncsched.units import Duration, to_seconds

try:
    from aiohttp import web
except ImportError as error:
    raise MissingExtra("this integration needs aiohttp: pip install aiohttp") from error

__all__ = ["SCHEDULER", "cleanup_ctx", "get_scheduler", "healthz"]

#: Where the application keeps its scheduler: ``app[SCHEDULER]``.
SCHEDULER: web.AppKey[Scheduler] = web.AppKey("asyncsched", Scheduler)

_REMEDY = (
    "app.cleanup_ctx.append(cleanup_ctx(scheduler)), of asyncsched.integrations.aiohttp. If it has that, the application has "
    "not been started"
)


def cleanup_ctx(
    scheduler: Scheduler, *, drain: Duration = 30
) -> Callable[[web.Application], AsyncIterator[None]]:
    """Start *scheduler* with the application and stop it at its clean-up: ``app.cleanup_ctx.append(cleanup_ctx(scheduler))``.

    :param drain: seconds that runs have to end when the application does. What is left then is cancelled, and made again by
        the next scheduler on the store.

    Contexts are left in reverse: append those first whose resources the jobs use. Raises DefinitionError for a *drain* below
    zero.
    """
    drain_s = to_seconds(drain, "drain")

    async def live(app: web.Application) -> AsyncIterator[None]:
        app[SCHEDULER] = scheduler
        async with started(scheduler, drain_s):
            yield

    return live


def get_scheduler(request: web.Request) -> Scheduler:
    """The scheduler of the application that serves *request*, or of one that this is a sub-application of.

    Raises NoScheduler where there is none.
    """
    found: Scheduler | None = request.config_dict.get(SCHEDULER)
    return given(found, _REMEDY)


def healthz(
    *, live: bool = False, details: bool = True, timeout: Duration = 5, max_lag: Duration | None = None
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler for health checks: ``app.router.add_get("/healthz", healthz())``.

    It answers 200 if the scheduler is ready, else 503: it takes calls, and each of its stores answers within *timeout* seconds.
    The JSON is that of ``scheduler.monitor.summary()``.

    :param live: answer 200 as long as this process serves requests, and ask no store: for a check that restarts what fails it.
    :param details: False: the JSON is ``{"ok": true}``, where it is not for everybody to know more.
    :param max_lag: not ready either if what is due is further behind (seconds or timedelta).

    Raises DefinitionError for a duration that is none.
    """
    check = Check(live, details, timeout, max_lag)

    async def healthz(request: web.Request) -> web.Response:
        status, shown = await check.answer(get_scheduler(request))
        return web.json_response(shown, status=status, headers=NO_CACHE)

    return healthz
