"""A scheduler in a Litestar application."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncsched import DefinitionError, MissingExtra, Scheduler
from asyncsched.integrations._life import NO_CACHE, Check, given, started
from asyncsched.units import Duration, to_seconds

try:
    from litestar import Litestar, Request, Response, get
    from litestar.config.app import AppConfig
    from litestar.connection import ASGIConnection
    from litestar.di import Provide
    from litestar.handlers import HTTPRouteHandler
    from litestar.plugins import InitPlugin
except ImportError as error:
    raise MissingExtra("this integration needs litestar: pip install litestar") from error

__all__ = ["SchedulerPlugin", "get_scheduler", "healthz"]

_STATE = "asyncsched"
_REMEDY = "give it plugins=[SchedulerPlugin(scheduler)], of asyncsched.integrations.litestar"


class SchedulerPlugin(InitPlugin):
    """Starts *scheduler* with the application, stops it with it, and is a dependency of its handlers by name.

    The lifespans that the application is given go around the scheduler's: for what the jobs need. Its ``on_startup`` hooks are
    called when the scheduler runs, its ``on_shutdown`` hooks when it has stopped.

    :param dependency: the name of a handler's parameter that gets the scheduler.
    :param drain: seconds that runs have to end when the application does. What is left then is cancelled, and made again by
        the next scheduler on the store.

    Raises DefinitionError for a *drain* below zero, and, when the application is made, for a dependency's name that is taken.
    """

    __slots__ = ("_dependency", "_drain_s", "_scheduler")

    def __init__(self, scheduler: Scheduler, *, dependency: str = "scheduler", drain: Duration = 30) -> None:
        self._scheduler = scheduler
        self._dependency = dependency
        self._drain_s = to_seconds(drain, "drain")

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Called by Litestar when the application is made."""
        if self._dependency in app_config.dependencies:
            raise DefinitionError(
                f"this application has a dependency {self._dependency!r} already: name the scheduler's, "
                f"SchedulerPlugin(scheduler, dependency=...)"
            )
        app_config.state[_STATE] = self._scheduler
        app_config.lifespan.append(self._live)
        app_config.dependencies[self._dependency] = Provide(self._provide, sync_to_thread=False)
        app_config.signature_types.append(Scheduler)
        return app_config

    def _live(self, app: Litestar) -> AbstractAsyncContextManager[None]:
        return started(self._scheduler, self._drain_s)

    def _provide(self) -> Scheduler:
        return self._scheduler


def get_scheduler(connection: ASGIConnection[Any, Any, Any, Any]) -> Scheduler:
    """The scheduler of the application that serves *connection*, for guards and the like; handlers have it as a dependency.

    Raises NoScheduler where there is none.
    """
    return given(connection.app.state.get(_STATE), _REMEDY)


def healthz(
    path: str = "/healthz",
    *,
    live: bool = False,
    details: bool = True,
    timeout: Duration = 5,
    max_lag: Duration | None = None,
) -> HTTPRouteHandler:
    """A handler for health checks at *path*: ``Litestar([..., healthz()], plugins=[SchedulerPlugin(scheduler)])``.

    It answers 200 if the scheduler is ready, else 503: it takes calls, and each of its stores answers within *timeout* seconds.
    The JSON is that of ``scheduler.monitor.summary()``.

    :param live: answer 200 as long as this process serves requests, and ask no store: for a check that restarts what fails it.
    :param details: False: the JSON is ``{"ok": true}``, where it is not for everybody to know more.
    :param max_lag: not ready either if what is due is further behind (seconds or timedelta).

    Raises DefinitionError for a duration that is none.
    """
    check = Check(live, details, timeout, max_lag)

    @get(path, opt={"exclude_from_auth": True})
    async def healthz(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
        status, shown = await check.answer(get_scheduler(request))
        return Response(shown, status_code=status, headers=NO_CACHE)

    return healthz
