"""A scheduler in a Starlette application."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from asyncsched import DefinitionError, MissingExtra, Scheduler
from asyncsched.integrations._life import NO_CACHE, Check, given, started
from asyncsched.units import Duration, to_seconds

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import JSONResponse
    from starlette.types import Lifespan
except ImportError as error:
    raise MissingExtra("this integration needs starlette: pip install starlette") from error

__all__ = ["attach", "get_scheduler", "healthz", "lifespan"]

_STATE = "asyncsched"
_REMEDY = (
    "give it lifespan=lifespan(scheduler), of asyncsched.integrations. If it has that, its lifespan was not entered: use a test "
    "client as a context manager. An application that is mounted in another one has no lifespan: attach(app, scheduler)"
)


def lifespan(
    scheduler: Scheduler,
    *,
    around: Lifespan[Any] | None = None,
    within: Lifespan[Any] | None = None,
    drain: Duration = 30,
) -> Lifespan[Any]:
    """The lifespan of an application whose scheduler is *scheduler*: ``Starlette(lifespan=lifespan(scheduler))``.

    :param around: a lifespan of your own that is entered before the scheduler starts and left when it has stopped: for what
        the jobs need.
    :param within: one that is entered when the scheduler runs, and left before it stops: for what needs the scheduler.
    :param drain: seconds that runs have to end when the application does. What is left then is cancelled, and made again by
        the next scheduler on the store.

    What the two yield is the state of the lifespan, as without a scheduler. The scheduler is attached to the application, for
    ``get_scheduler``. Raises DefinitionError for what can be no lifespan, and for a *drain* below zero.
    """
    drain_s = to_seconds(drain, "drain")
    outer, inner = _checked(around, "around"), _checked(within, "within")

    @asynccontextmanager
    async def live(app: Starlette) -> AsyncIterator[Any]:
        attach(app, scheduler)
        async with (
            _entered(outer, app) as outer_state,
            started(scheduler, drain_s),
            _entered(inner, app) as inner_state,
        ):
            yield _merged(outer_state, inner_state)

    return live


def attach(app: Starlette, scheduler: Scheduler) -> None:
    """Let ``get_scheduler`` give *scheduler* to the requests of *app*, which somebody else starts and stops.

    ``lifespan`` does this for the application that it is given to; one that is mounted in that needs it said.
    """
    setattr(app.state, _STATE, scheduler)


def get_scheduler(connection: HTTPConnection) -> Scheduler:
    """The scheduler of the application that serves this request or WebSocket; raises NoScheduler where there is none."""
    return given(getattr(connection.app.state, _STATE, None), _REMEDY)


def healthz(
    *, live: bool = False, details: bool = True, timeout: Duration = 5, max_lag: Duration | None = None
) -> Callable[[Request], Awaitable[JSONResponse]]:
    """An endpoint for health checks: ``Route("/healthz", healthz())``, or ``app.add_route("/healthz", healthz())``.

    It answers 200 if the scheduler is ready, else 503: it takes calls, and each of its stores answers within *timeout* seconds.
    The JSON is that of ``scheduler.monitor.summary()``.

    :param live: answer 200 as long as this process serves requests, and ask no store: for a check that restarts what fails it.
    :param details: False: the JSON is ``{"ok": true}``, where it is not for everybody to know more.
    :param max_lag: not ready either if what is due is further behind (seconds or timedelta).

    Raises DefinitionError for a duration that is none.
    """
    check = Check(live, details, timeout, max_lag)

    async def healthz(request: Request) -> JSONResponse:
        status, shown = await check.answer(get_scheduler(request))
        return JSONResponse(shown, status, headers=NO_CACHE)

    return healthz


def _checked(given: Lifespan[Any] | None, name: str) -> Lifespan[Any] | None:
    if given is not None and (not callable(given) or inspect.isasyncgenfunction(given)):
        raise DefinitionError(
            f"{name} must be a function of the application that gives an async context manager, not {given!r}: put "
            f"@asynccontextmanager above it"
        )
    return given


def _entered(
    own: Lifespan[Any] | None, app: Starlette
) -> AbstractAsyncContextManager[Mapping[str, Any] | None]:
    return nullcontext() if own is None else own(app)


def _merged(outer: Mapping[str, Any] | None, inner: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The state for the server; None where neither lifespan has any, since not every server keeps one."""
    return None if outer is None and inner is None else {**(outer or {}), **(inner or {})}
