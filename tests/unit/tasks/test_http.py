"""The task http: what it sends and gives, where it goes, and where it refuses to go."""

import asyncio
import gzip
import json
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from asyncsched import (
    DefinitionError,
    RequestFailed,
    RequestRefused,
    Retry,
    Run,
    Scheduler,
    Task,
    current_run,
)
from asyncsched.tasks import http
from asyncsched.tasks._addresses import is_permitted, networks_of
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

HERE = ["127.0.0.1"]
SECRET = "Bearer sesame-open"


@dataclass
class Received:
    """A request as it came in."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Site:
    """A server of HTTP/1.1 that answers each path as it was told to."""

    port: int = 0
    answers: dict[str, bytes] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    #: Bytes of endless bodies that were sent.
    poured: int = 0
    #: Connections.
    open: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.answers[path] = "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.received.append(Received(head[0], headers, body))
            path = head[0].split()[1].partition("?")[0]
            if path == "/silent":
                await reader.read()
            elif path == "/endless":
                await self.pour(writer)
            elif path == "/echo":
                self.answer("/echo", body="\r\n".join(head).encode())
                writer.write(self.answers["/echo"])
            else:
                writer.write(self.answers.get(path, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"))
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self.open -= 1
            writer.close()

    async def pour(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 Said\r\nconnection: close\r\n\r\n")
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()
            self.poured += 10_000


@asynccontextmanager
async def serving(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, host, port)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


class Names:
    """What names resolve to, one answer after another, the last one for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **names: list[list[str]]) -> None:
        self.asked: list[str] = []
        self._names = {name.replace("_", "."): answers for name, answers in names.items()}
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.resolve)

    async def resolve(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        answers = self._names[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
            for address in found
        ]


async def run_of(task: Any, **job: Any) -> Run:
    """The last run of a job of *task* in a scheduler."""
    scheduler = Scheduler()
    async with running(scheduler):
        await scheduler.add_job(scheduler.register(task), id="x", **job)
        await scheduler.wait_job("x", timeout=30)
        return (await scheduler.history.runs("x"))[0]


# -- what it sends and gives ---------------------------------------------------------------------------------------------


async def test_the_result_has_the_status_and_the_body(site: Site) -> None:
    site.answer("/now", 200, b"noon", content_type="text/plain")
    run = await run_of(http(name="curl-clock", url=f"{site.url}/now?zone=est", allow_networks=HERE))
    assert run.task == "curl-clock"
    assert run.result == {"status": 200, "body": "noon", "truncated": False, "headers": {}, "redirects": 0}
    assert site.received[0].line == "GET /now?zone=est HTTP/1.1"


async def test_method_headers_and_body_are_sent(site: Site) -> None:
    site.answer("/")
    task = http(
        f"{site.url}/", method="put", headers={"X-Word": "a b"}, body="gr\u00fc\u00dfe", allow_networks=HERE
    )
    await task()
    [received] = site.received
    assert received.line == "PUT / HTTP/1.1"
    assert received.headers["x-word"] == "a b"
    assert received.headers["host"] == f"127.0.0.1:{site.port}"
    assert received.body.decode() == "gr\u00fc\u00dfe"


@pytest.mark.parametrize("value", [{"a": [1, None]}, None, []], ids=str)
async def test_json_is_sent_as_json(site: Site, value: Any) -> None:
    site.answer("/")
    await http(f"{site.url}/", method="POST", json=value, allow_networks=HERE)()
    [received] = site.received
    assert received.headers["content-type"] == "application/json"
    assert json.loads(received.body) == value


async def test_another_status_than_expected_is_a_failure(site: Site) -> None:
    site.answer("/", 503, b"later")
    with pytest.raises(RequestFailed) as raised:
        await http(f"{site.url}/secret/path?token=sesame", name="ask", allow_networks=HERE)()
    assert raised.value.status == 404
    with pytest.raises(RequestFailed, match="503") as raised:
        await http(f"{site.url}/", name="ask", allow_networks=HERE)()
    assert (raised.value.status, raised.value.body, raised.value.task) == (503, "later", "ask")


@pytest.mark.parametrize("expected", [503, [200, 503], range(500, 600)], ids=str)
async def test_which_statuses_are_expected_is_declared(site: Site, expected: Any) -> None:
    site.answer("/", 503)
    task = http(f"{site.url}/", expected=expected, allow_networks=HERE)
    assert (await task())["status"] == 503
    site.answer("/", 404)
    with pytest.raises(RequestFailed):
        await task()


async def test_only_so_much_of_an_answer_is_read(site: Site) -> None:
    task = http(f"{site.url}/endless", max_response=25_000, allow_networks=HERE)
    result = await task()
    assert (result["body"], result["truncated"]) == ("x" * 25_000, True)
    poured = site.poured
    site.answer("/all", 200, b"y" * 25_000)
    assert (await http(f"{site.url}/all", max_response=25_000, allow_networks=HERE)())["truncated"] is False
    # The endless one was told to stop; what filled the buffers of both hosts is all that came.
    assert site.poured == poured < 50_000_000


async def test_an_answer_that_is_compressed_against_the_request_is_not_unpacked(site: Site) -> None:
    bomb = gzip.compress(b"z" * 5_000_000)
    site.answer("/", 200, bomb, content_encoding="gzip")
    result = await http(f"{site.url}/", allow_networks=HERE)()
    assert site.received[0].headers["accept-encoding"] == "identity"
    assert len(result["body"]) <= len(bomb)


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain; charset=latin-1", b"gr\xfc\xdfe", "gr\u00fc\u00dfe"),
        ("text/plain; charset=nonsense", "gr\u00fc\u00dfe".encode(), "gr\u00fc\u00dfe"),
        ("text/plain; charset=zlib", b"abc", "abc"),
        ("application/octet-stream", b"a\xffb", "a\N{REPLACEMENT CHARACTER}b"),
    ],
)
async def test_the_body_is_text_in_the_charset_that_the_answer_names(
    site: Site, content_type: str, body: bytes, text: str
) -> None:
    site.answer("/", 200, body, content_type=content_type)
    assert (await http(f"{site.url}/", allow_networks=HERE)())["body"] == text


async def test_the_headers_that_were_asked_for_are_kept(site: Site) -> None:
    site.answer("/", etag="five", set_cookie="session=sesame")
    result = await http(f"{site.url}/", keep_headers=["ETag", "X-None"], allow_networks=HERE)()
    assert result["headers"] == {"etag": "five"}


async def test_all_attempts_at_one_fire_time_send_the_same_key(site: Site) -> None:
    site.answer("/", 500)
    task = http(
        f"{site.url}/", method="POST", idempotency_header="Idempotency-Key", name="pay", allow_networks=HERE
    )
    run = await run_of(task, retry=Retry(max_attempts=2, base=0.01))
    assert run.attempt == 2
    first, second = (received.headers["idempotency-key"] for received in site.received)
    assert first == second
    assert len(first) == 32


@pytest.mark.parametrize("kind", ["nobody listens", "no such name", "silent", "no HTTP"])
async def test_no_answer_is_a_failure(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    urls = {"silent": f"{site.url}/silent", "no HTTP": f"{site.url}/broken"}
    site.answers["/broken"] = b"220 mail.example.org ESMTP\r\n"
    if kind == "nobody listens":
        with socket.create_server(("127.0.0.1", 0)) as server:
            urls[kind] = f"http://127.0.0.1:{server.getsockname()[1]}/"
    if kind == "no such name":
        urls[kind] = "http://no-such-name.invalid/"
    with pytest.raises(RequestFailed) as raised:
        await http(urls[kind], timeout=0.5, allow_networks=HERE)()
    assert raised.value.status is None


async def test_a_job_may_wait_longer_for_an_answer_than_its_task(site: Site) -> None:
    task = http(f"{site.url}/silent", timeout=0.2, allow_networks=HERE)
    run = await run_of(task, timeout=0.8)
    assert (run.outcome, run.error) == ("timed_out", "RunTimeout: took longer than its timeout of 0.8 s")


async def test_within_the_run_of_another_task_a_call_has_its_own_timeout(site: Site) -> None:
    call = http(f"{site.url}/silent", timeout=0.2, allow_networks=HERE)

    async def other() -> None:
        await call()

    run = await run_of(Task(other, "other"))
    assert run.outcome == "failed"
    assert "ReadTimeout" in (run.error or "")


async def test_a_run_that_times_out_leaves_no_connection(site: Site) -> None:
    run = await run_of(http(f"{site.url}/silent", timeout=60, allow_networks=HERE), timeout=0.5)
    assert run.outcome == "timed_out"
    assert len(site.received) == 1
    await eventually(lambda: site.open == 0, what="the end of the connection")


# -- what jobs may give --------------------------------------------------------------------------------------------------


async def test_a_job_gives_the_url_and_more_where_the_url_is_not_fixed(site: Site) -> None:
    site.answer("/", 201)
    task = http(allow_networks=HERE)
    given = {
        "url": f"{site.url}/",
        "method": "POST",
        "json": [5],
        "headers": {"X-A": "b"},
        "expected": [201],
    }
    assert (await run_of(task, kwargs=given)).result["status"] == 201
    [received] = site.received
    assert (received.line, received.headers["x-a"], received.body) == ("POST / HTTP/1.1", "b", b"[5]")


@pytest.mark.parametrize(
    "given", [{"url": "http://other.example/"}, {"headers": {"a": "b"}}, {"method": "DELETE"}], ids=str
)
def test_a_job_gives_nothing_where_the_url_is_fixed(given: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="do not fit"):
        http("http://one.example/").bind(**given)


async def test_a_job_gives_what_per_job_names_and_no_header_that_is_fixed(site: Site) -> None:
    site.answer("/")
    task = http(
        f"{site.url}/",
        method="POST",
        headers={"Authorization": SECRET},
        per_job=["json", "headers"],
        allow_networks=HERE,
    )
    await task(json={"n": 1}, headers={"X-A": "b"})
    assert site.received[0].headers["authorization"] == SECRET
    assert site.received[0].headers["x-a"] == "b"
    with pytest.raises(DefinitionError, match="'authorization' is fixed"):
        await task(headers={"AUTHORIZATION": "mine"})
    with pytest.raises(DefinitionError, match="do not fit"):
        task.bind(url="http://evil.example/")


@pytest.mark.parametrize("per_job", [None, ["url"]], ids=str)
def test_headers_are_not_fixed_where_jobs_choose_to_whom_they_go(per_job: Any) -> None:
    url = None if per_job is None else "http://one.example/"
    with pytest.raises(DefinitionError, match="authorization") as raised:
        http(url, headers={"Authorization": SECRET}, per_job=per_job)
    assert SECRET not in str(raised.value)
    http(url, headers={"User-Agent": "mine"}, per_job=per_job)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "ftp://one.example/"}, "http://"),
        ({"url": "/path"}, "http://"),
        ({"url": "http://user:sesame@one.example/"}, "Authorization"),
        ({"url": "http://one.example:sesame/"}, "url"),
        ({"method": "GET /"}, "method"),
        ({"method": "CONNECT"}, "method"),
        ({"headers": {"a": "sesame\r\nx: y"}}, "'a'"),
        ({"headers": {"a": "sesame\n"}}, "'a'"),
        ({"headers": {"a b": "c"}}, "no name"),
        ({"headers": {"Host": "internal"}}, "'Host'"),
        ({"headers": {"Content-Length": "5"}}, "'Content-Length'"),
        ({"body": "a", "json": "b"}, "not both"),
        ({"body": 5}, r"body of the task 'http' must be str \| bytes, not a value of int"),
        ({"expected": 5}, "expected"),
        ({"expected": []}, "expected"),
        ({"redirects": -1}, "redirects"),
        ({"max_response": 1.5}, "max_response"),
        ({"allow_networks": ["10.0.0.0/99"]}, "allow_networks"),
        ({"allow_networks": "10.0.0.0/8"}, "allow_networks"),
        ({"keep_headers": "etag"}, "keep_headers"),
        ({"per_job": ["verify"]}, "per_job"),
        ({"timeout": 0}, "timeout"),
    ],
    ids=str,
)
def test_options_that_can_never_work_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason) as raised:
        http(**{"url": "http://one.example/", **options})
    assert "sesame" not in str(raised.value) or options.get("url", "").endswith(":sesame/")


# -- secrets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/good", "/bad", "/echo", "/silent"])
async def test_fixed_headers_are_in_no_log_and_no_history(
    site: Site, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.answer("/good")
    site.answer("/bad", 500, SECRET.encode())

    task = http(
        f"{site.url}{path}?token=sesame",
        headers={"Authorization": SECRET, "X-Api-Key": "sesame-too"},
        allow_networks=HERE,
        timeout=1,
    )
    scheduler = Scheduler()
    with caplog.at_level(logging.DEBUG):
        async with running(scheduler):
            await scheduler.add_job(scheduler.register(task), id="x")
            await scheduler.wait_job("x", timeout=30)
            [run] = await scheduler.history.runs("x")
    assert site.received[0].headers["authorization"] == SECRET
    secrets = ("sesame-open", "sesame-too")
    told = f"{run}{caplog.text}{[record.args for record in caplog.records]}"
    assert not [secret for secret in secrets if secret in told]
    assert "token" not in f"{run.error}{run.traceback}"


async def test_an_answer_that_says_a_fixed_header_back_does_not_bring_it_into_history(site: Site) -> None:
    site.answer("/", 200, f"you sent {SECRET}, sesame-open".encode(), x_back=SECRET)
    site.answer("/bad", 500, SECRET.encode())
    headers = {"Authorization": SECRET}
    run = await run_of(http(f"{site.url}/", headers=headers, keep_headers=["x-back"], allow_networks=HERE))
    assert run.result["body"] == "you sent [authorization], [authorization]"
    assert run.result["headers"] == {"x-back": "[authorization]"}
    with pytest.raises(RequestFailed) as raised:
        await http(f"{site.url}/bad", headers=headers, allow_networks=HERE)()
    assert raised.value.body == "[authorization]"


# -- addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_a_request_to_this_host_is_refused(site: Site, host: str) -> None:
    with pytest.raises(RequestRefused, match="allow_networks"):
        await http(f"http://{host}:{site.port}/")()
    assert site.received == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12::1",
        "fec0::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "2001:0:1::1",
        "2001:db8::1",
        "100::1",
    ],
)
def test_what_is_not_of_the_public_internet_is_refused(address: str) -> None:
    assert not is_permitted(ip_address(address), ())


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_what_is_of_the_public_internet_is_permitted(address: str) -> None:
    assert is_permitted(ip_address(address), ())


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"])
def test_networks_that_are_allowed_are_permitted_and_no_others(address: str) -> None:
    assert is_permitted(ip_address(address), networks_of(["10.1.0.0/16", "fd00::/8"]))
    assert not is_permitted(ip_address(address), networks_of(["10.2.0.0/16"]))


async def test_a_name_is_resolved_once_and_the_connection_goes_to_that_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving("127.0.0.1") as good, serving("127.0.0.2", good.port) as evil:
        good.answer("/", 200, b"good")
        evil.answer("/", 200, b"evil")
        names = Names(monkeypatch, rebinding_example=[["127.0.0.1"], ["127.0.0.2"]])
        task = http(f"http://rebinding.example:{good.port}/", allow_networks=["127.0.0.1"])
        assert (await task())["body"] == "good"
        assert names.asked == ["rebinding.example"]
        assert good.received[0].headers["host"] == f"rebinding.example:{good.port}"
        # The next request asks anew, and is refused.
        with pytest.raises(RequestRefused, match=r"127\.0\.0\.2"):
            await task()
        assert evil.received == []


async def test_of_several_addresses_only_permitted_ones_are_tried(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answer("/", 200, b"here")
    async with serving("127.0.0.2", site.port) as other:
        Names(monkeypatch, mixed_example=[["127.0.0.2", "127.0.0.3", "127.0.0.1"]])
        # Nobody listens at 127.0.0.3.
        task = http(f"http://mixed.example:{site.port}/", allow_networks=["127.0.0.3", "127.0.0.1"])
        assert (await task())["body"] == "here"
        assert other.received == []


async def test_proxies_of_the_environment_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, site.url)
    with pytest.raises(RequestRefused):
        await http("http://10.1.2.3/")()
    assert site.received == []


# -- redirects -----------------------------------------------------------------------------------------------------------


async def test_a_redirect_is_an_answer_like_any_other_unless_it_may_be_followed(site: Site) -> None:
    site.answer("/", 302, location="/there")
    site.answer("/there", 200, b"there")
    with pytest.raises(RequestFailed, match="302"):
        await http(f"{site.url}/", allow_networks=HERE)()
    assert (await http(f"{site.url}/", expected=302, allow_networks=HERE)())["status"] == 302
    result = await http(f"{site.url}/", redirects=1, allow_networks=HERE)()
    assert (result["body"], result["redirects"]) == ("there", 1)


async def test_only_so_many_redirects_are_followed(site: Site) -> None:
    site.answer("/", 302, location="/")
    with pytest.raises(RequestFailed, match="more than 3 times"):
        await http(f"{site.url}/", redirects=3, allow_networks=HERE)()
    assert len(site.received) == 4


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2:{port}/", "//127.0.0.2:{port}/", "http://169.254.169.254/latest/meta-data/"],
)
async def test_a_redirect_to_an_address_that_is_not_permitted_is_refused(site: Site, location: str) -> None:
    site.answer("/", 302, location=location.format(port=site.port))
    async with serving("127.0.0.2", site.port) as inner:
        with pytest.raises(RequestRefused, match="allow_networks"):
            await http(f"{site.url}/", redirects=5, allow_networks=HERE)()
        assert inner.received == []


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://user:word@127.0.0.1/",
        "http://127.0.0.1:x/",
        "gopher:",
    ],
)
async def test_a_redirect_to_what_is_no_url_to_be_followed_is_refused(site: Site, location: str) -> None:
    site.answer("/", 302, location=location)
    with pytest.raises(RequestRefused, match="to be followed"):
        await http(f"{site.url}/", redirects=5, allow_networks=HERE)()


async def test_another_origin_gets_no_header_that_was_meant_for_the_first(site: Site) -> None:
    headers = {"Authorization": SECRET, "X-Api-Key": "sesame", "Cookie": "a=b", "User-Agent": "mine"}
    async with serving() as other:
        site.answer("/", 302, location=f"{other.url}/")
        other.answer("/", 302, location=f"{site.url}/back")
        site.answer("/back")
        task = http(
            f"{site.url}/",
            headers=headers,
            idempotency_header="Idempotency-Key",
            redirects=5,
            allow_networks=HERE,
        )
        await run_of(task)
        first, back = site.received
        assert first.headers["x-api-key"] == "sesame"
        for received in (*other.received, back):
            assert received.headers["user-agent"] == "mine"
            assert not {"authorization", "x-api-key", "cookie", "idempotency-key"} & received.headers.keys()


async def test_the_same_origin_gets_the_headers_again(site: Site) -> None:
    site.answer("/", 307, location="/there")
    site.answer("/there")
    await http(f"{site.url}/", headers={"X-Api-Key": "sesame"}, redirects=1, allow_networks=HERE)()
    assert [received.headers["x-api-key"] for received in site.received] == ["sesame", "sesame"]


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"), (302, "POST", "GET"), (303, "PUT", "GET"), (303, "HEAD", "HEAD"),
        (307, "POST", "POST"), (308, "PUT", "PUT"), (301, "DELETE", "DELETE"),
    ],
)  # fmt: skip
async def test_the_status_of_a_redirect_says_which_method_follows(
    site: Site, status: int, method: str, then: str
) -> None:
    site.answer("/", status, location="/there")
    site.answer("/there")
    body = None if method == "HEAD" else "the body"
    await http(f"{site.url}/", method=method, body=body, redirects=1, allow_networks=HERE)()
    first, second = site.received
    assert (first.line.split()[0], second.line.split()[0]) == (method, then)
    assert second.body == (b"the body" if then == method and body else b"")


async def test_a_body_is_not_redirected_to_another_origin(site: Site) -> None:
    async with serving() as other:
        site.answer("/", 307, location=f"{other.url}/")
        with pytest.raises(RequestRefused, match="another origin"):
            await http(f"{site.url}/", method="POST", body="secret", redirects=1, allow_networks=HERE)()
        assert other.received == []


# -- TLS -----------------------------------------------------------------------------------------------------------------


async def test_an_unknown_certificate_is_refused_and_its_name_is_that_of_the_url(
    certificate: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_server, of_client = certificate
    site = Site()
    site.answer("/", 200, b"safe")
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=of_server)
    port = server.sockets[0].getsockname()[1]
    async with server:
        Names(monkeypatch, known_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])

        def ask(name: str, verify: Any) -> Any:
            return http(f"https://{name}:{port}/", verify=verify, allow_networks=HERE)()

        assert (await ask("known.example", of_client))["body"] == "safe"
        with pytest.raises(RequestFailed, match="certificate"):
            await ask("other.example", of_client)
        with pytest.raises(RequestFailed, match="certificate"):
            await ask("known.example", True)
        site.answer("/", 302, location="http://127.0.0.1:1/")
        with pytest.raises(RequestRefused, match="https to http"):
            await http(f"https://known.example:{port}/", verify=of_client, redirects=1, allow_networks=HERE)()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For known.example: the server's context, and that of a client that trusts it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=known.example",
            "-addext", "subjectAltName=DNS:known.example", "-keyout", folder / "key", "-out", folder / "certificate",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    of_server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    of_server.load_cert_chain(folder / "certificate", folder / "key")
    return of_server, ssl.create_default_context(cafile=str(folder / "certificate"))


def test_the_clock_of_a_run_is_its_schedulers(clock: Any) -> None:
    seen: list[Any] = []

    async def use() -> None:
        scheduler = Scheduler(clock=clock)

        @scheduler.task(name="look")
        async def look() -> None:
            run = current_run()
            seen.append((run.clock, run.now() == clock.now(), run.cancel_reason, run.abandoned))

        async with running(scheduler, clock=clock):
            await scheduler.add_job(look, id="x")
            await clock.advance(1)

    asyncio.run(use())
    assert seen == [(clock, True, None, False)]
