"""One request with its redirects, within a policy."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from email.message import Message

import httpcore
import httpx

from asyncsched import DefinitionError, RequestFailed, RequestRefused
from asyncsched.tasks._addresses import Guard, Network, networks_of

__all__ = [
    "Answer",
    "Policy",
    "Request",
    "checked_headers",
    "checked_url",
    "is_harmless",
    "networks_of",
    "tls_of",
]

#: Headers that say nothing about who sends them, and may go to another origin.
_HARMLESS = frozenset({"accept", "accept-language", "user-agent"})
_DEFAULTS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "asyncsched"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Of a header's value: ASCII without control characters; white space within only.
_VALUE = re.compile(r"(?:[!-~](?:[ \t!-~]*[!-~])?)?")
#: What says to whom a message goes and where it ends follows from the URL and the body.
_MADE_HERE = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a task may do, whatever its jobs ask for."""

    networks: tuple[Network, ...]
    redirects: int
    max_response: int
    keep_headers: frozenset[str]
    tls: ssl.SSLContext
    timeout_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    body: str
    is_truncated: bool
    headers: dict[str, str]
    redirects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to send, checked. Shown, it keeps its secrets."""

    url: httpx.URL = field(repr=False)
    method: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)

    async def send(self, policy: Policy, is_expected: Callable[[int], bool]) -> Answer:
        """Raises RequestFailed for another answer or none, RequestRefused for what the policy forbids."""
        request, followed = self, 0
        async with httpcore.AsyncConnectionPool(
            ssl_context=policy.tls, network_backend=Guard(policy.networks), max_keepalive_connections=0
        ) as pool:
            answer, location = await request._once(pool, policy)
            while policy.redirects and location is not None:
                if followed == policy.redirects:
                    raise RequestFailed(
                        f"{_origin(self.url)} redirects more than {followed} times", status=answer.status
                    )
                followed += 1
                request = request._redirected(answer.status, location)
                answer, location = await request._once(pool, policy)
        if not is_expected(answer.status):
            raise RequestFailed(
                f"{_origin(request.url)} answered with the status {answer.status}, which is not expected",
                status=answer.status,
                body=answer.body,
            )
        return replace(answer, redirects=followed)

    async def _once(self, pool: httpcore.AsyncConnectionPool, policy: Policy) -> tuple[Answer, str | None]:
        """The answer, and where it redirects to."""
        try:
            response = await pool.handle_async_request(self._raw(policy.timeout_s))
            try:
                content = await _beginning(response, policy.max_response + 1)
            finally:
                await response.aclose()
        except _FAILURES as error:
            text = f"{type(error).__name__}: {error}".rstrip(": ")
            raise RequestFailed(f"{_origin(self.url)} gave no answer ({text})") from error
        headers = httpx.Headers(response.headers)
        kept = {name: headers[name] for name in sorted(policy.keep_headers) if name in headers}
        answer = Answer(
            status=response.status,
            body=_text_of(content[: policy.max_response], headers),
            is_truncated=len(content) > policy.max_response,
            headers=kept,
            redirects=0,
        )
        return answer, headers.get("location") if response.status in _REDIRECTS else None

    def _raw(self, timeout_s: float | None) -> httpcore.Request:
        made = httpx.Request(self.method, self.url, headers={**_DEFAULTS, **self.headers}, content=self.body)
        url = httpcore.URL(
            scheme=made.url.raw_scheme, host=made.url.raw_host, port=made.url.port, target=made.url.raw_path
        )
        limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        return httpcore.Request(
            made.method, url, headers=made.headers.raw, content=made.stream, extensions={"timeout": limits}
        )

    def _redirected(self, status: int, location: str) -> Request:
        """The request that a redirect asks for; to another origin goes nothing that was meant for this one."""
        try:
            url = checked_url(str(self.url.join(location)))
        except (DefinitionError, httpx.InvalidURL) as error:
            raise RequestRefused(
                f"{_origin(self.url)} redirects to what is no URL to be followed: {error}", status=status
            ) from None
        if self.url.scheme == "https" and url.scheme != "https":
            raise RequestRefused(f"{_origin(self.url)} redirects from https to http", status=status)
        method, body = self.method, self.body
        if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
            method, body = "GET", None
        headers = {
            name: value for name, value in self.headers.items() if body is not None or not _is_of_body(name)
        }
        if _origin(url) != _origin(self.url):
            if body is not None:
                raise RequestRefused(
                    f"{_origin(self.url)} redirects the body to another origin, {_origin(url)}", status=status
                )
            headers = {name: value for name, value in headers.items() if is_harmless(name)}
        return Request(url=url, method=method, headers=headers, body=body)


def checked_url(url: str) -> httpx.URL:
    """Raises DefinitionError; the message does not show the URL, which may hold a secret."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise DefinitionError(f"url is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise DefinitionError("url must begin with http:// or https:// and a host")
    if parsed.userinfo:
        raise DefinitionError(
            "url must not hold a user or a password: send them in headers=, as Authorization"
        )
    return parsed


def checked_method(method: str) -> str:
    if not isinstance(method, str) or not _TOKEN.fullmatch(method) or method.upper() == "CONNECT":
        raise DefinitionError(f"method must be a method of HTTP, not {method!r}")
    return method.upper()


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """By their names in lower case. Raises DefinitionError; the message shows no value, which may be a secret."""
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise DefinitionError(f"headers: {name!r} is no name of a header")
        if name.lower() in _MADE_HERE:
            raise DefinitionError(f"headers: {name!r} follows from the URL and the body, and cannot be given")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise DefinitionError(
                f"headers: the value of {name!r} must be a string of printable ASCII without white space at its ends"
            )
        checked[name.lower()] = value
    return checked


def is_harmless(name: str) -> bool:
    """Whether the header (in lower case) may go anywhere."""
    return name in _HARMLESS


def tls_of(verify: bool | ssl.SSLContext) -> ssl.SSLContext:
    """What connections are checked by."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    return httpx.create_ssl_context(verify=bool(verify))


def _is_of_body(name: str) -> bool:
    return name.startswith("content-") or name == "transfer-encoding"


def _origin(url: httpx.URL) -> str:
    """Scheme, host and port: as much of a URL as is shown."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = {"http": 80, "https": 443}[url.scheme] if url.port is None else url.port
    return f"{url.scheme}://{host}:{port}"


async def _beginning(response: httpcore.Response, size: int) -> bytes:
    """At most so many bytes of it; no more than a piece beyond that is read."""
    content = bytearray()
    async with aclosing(response.aiter_stream()) as parts:  # type: ignore[type-var]  # it is a generator
        async for part in parts:
            content += part
            if len(content) >= size:
                break
    return bytes(content[:size])


def _text_of(content: bytes, headers: httpx.Headers) -> str:
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    charset = message.get_content_charset() or "utf-8"
    try:
        return content.decode(charset, errors="replace")
    except (LookupError, ValueError):
        # Unknown, or none of text.
        return content.decode(errors="replace")
