"""Endpoints of a FastAPI application get its scheduler as a dependency."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient

from asyncsched import NoScheduler, Scheduler
from asyncsched.integrations.fastapi import SchedulerDep, attach, get_scheduler, lifespan

router = APIRouter()


@router.get("/short")
async def short(scheduler: SchedulerDep) -> str:
    return f"{scheduler.id} {scheduler.state}"


@router.get("/long")
async def long(scheduler: Annotated[Scheduler, Depends(get_scheduler)]) -> str:
    return f"{scheduler.id} {scheduler.state}"


@router.websocket("/socket")
async def socket(socket: WebSocket, scheduler: SchedulerDep) -> None:
    await socket.accept()
    await socket.send_text(f"{scheduler.id} {scheduler.state}")
    await socket.close()


def make_app(scheduler: Scheduler | None) -> FastAPI:
    app = FastAPI(lifespan=None if scheduler is None else lifespan(scheduler))
    app.include_router(router)
    return app


def test_the_scheduler_is_a_dependency_of_endpoints_and_websockets() -> None:
    scheduler = Scheduler(id="web")
    with TestClient(make_app(scheduler)) as client:
        assert client.get("/short").json() == client.get("/long").json() == "web running"
        with client.websocket_connect("/socket") as connection:
            assert connection.receive_text() == "web running"
    assert scheduler.state == "stopped"


def test_the_dependency_is_no_parameter_of_the_request() -> None:
    operation = make_app(Scheduler()).openapi()["paths"]["/short"]["get"]
    assert "parameters" not in operation
    assert "requestBody" not in operation


def test_a_test_may_put_another_scheduler_in_its_place() -> None:
    app = make_app(Scheduler(id="web"))
    app.dependency_overrides[get_scheduler] = lambda: Scheduler(id="other")
    with TestClient(app) as client:
        assert client.get("/short").json() == "other stopped"


def test_an_application_without_a_scheduler_says_how_to_attach_one() -> None:
    with (
        TestClient(make_app(None)) as client,
        pytest.raises(NoScheduler, match=r"no scheduler is attached .*lifespan=lifespan\(scheduler\)"),
    ):
        client.get("/short")


def test_a_mounted_application_has_the_scheduler_that_is_attached_to_it() -> None:
    scheduler, inner = Scheduler(id="web"), make_app(None)
    app = make_app(scheduler)
    app.mount("/inner", inner)
    attach(inner, scheduler)
    with TestClient(app) as client:
        assert client.get("/inner/short").json() == "web running"
