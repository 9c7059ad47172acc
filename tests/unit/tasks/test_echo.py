"""The task echo, and how built-in tasks come into a scheduler."""

import logging

import pytest

from asyncsched import ConflictingTaskError, DefinitionError, Scheduler, Task, once
from asyncsched.tasks import echo, http, shell
from tests.support.running import running

pytestmark = pytest.mark.anyio


async def test_echo_logs_and_returns_what_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler()
    fixed = scheduler.register(echo("hello", name="hello"))
    told = scheduler.register(echo())
    with caplog.at_level(logging.INFO, "asyncsched"):
        async with running(scheduler):
            await scheduler.add_job(fixed, id="a")
            await scheduler.add_job(told, id="b", args=["world"])
            for id in "ab":
                await scheduler.wait_job(id, timeout=20)
            assert [run.result for run in await scheduler.history.runs()][::-1] == ["hello", "world"]
    assert {"hello", "world"} <= {record.getMessage() for record in caplog.records}
    assert await fixed() == "hello"
    with pytest.raises(DefinitionError, match="do not fit"):
        fixed.bind("something else")


def test_no_built_in_task_is_registered_unless_asked_for() -> None:
    scheduler = Scheduler()
    assert dict(scheduler.tasks) == {}
    scheduler.register(http(name="curl-clock", url="http://worldclock.example/api/json/est/now"))
    scheduler.register(shell(["ls"], name="list"))
    scheduler.register(echo())
    assert sorted(scheduler.tasks) == ["curl-clock", "echo", "list"]


def test_each_has_its_own_name_and_options_unless_the_registration_says_otherwise() -> None:
    scheduler = Scheduler()
    task = scheduler.register(shell(["ls"], name="list", timeout=5))
    assert (task.name, task.timeout) == ("list", 5)
    task = scheduler.register(shell(["ls"], name="list", timeout=5), "another", timeout=7)
    assert (task.name, task.timeout) == ("another", 7)
    with pytest.raises(ConflictingTaskError):
        scheduler.register(shell(["rm"], name="list"))


async def test_a_job_of_a_durable_store_may_be_of_a_built_in_task(sqlite_url: str) -> None:
    scheduler = Scheduler(sqlite_url)
    task: Task[..., object] = echo(name="say")
    async with running(scheduler):
        await scheduler.add_job(task, id="now", args=["hello"])
        await scheduler.wait_job("now", timeout=20)
        await scheduler.add_job("say", once(delay=3600), id="later", kwargs={"message": "bye"})
        [run] = await scheduler.history.runs("now")
        assert (run.task, run.result) == ("say", "hello")
