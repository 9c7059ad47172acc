"""The task that makes an HTTP request, and goes nowhere that it was not told it may go."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from asyncsched import DefinitionError, MissingExtra, NoCurrentRun, RequestFailed, Retry, Task, current_run
from asyncsched.tasks._given import task_of
from asyncsched.units import Duration, to_seconds

if TYPE_CHECKING:
    import ssl

    from asyncsched.tasks._request import Policy, Request

__all__ = ["HttpResult", "http"]

_UNSET: Any = object()
#: What is shorter stands in any text.
_SHORTEST_SECRET = 6

_HINTS: Mapping[str, Any] = {
    "url": str,
    "method": str,
    "headers": dict[str, str],
    "body": str | bytes,
    "json": Any,
    "expected": int | list[int],
}


class HttpResult(TypedDict):
    """What a request was answered."""

    status: int
    #: The beginning of the answer, as text.
    body: str
    #: Whether something of it is missing.
    truncated: bool
    #: Those headers of the answer that ``keep_headers`` names, by their names in lower case.
    headers: dict[str, str]
    #: How many redirects were followed.
    redirects: int


def http(
    url: str | None = None,
    *,
    name: str = "http",
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    body: str | bytes | None = None,
    json: Any = _UNSET,
    expected: int | Collection[int] | None = None,
    redirects: int = 0,
    allow_networks: Collection[str] = (),
    keep_headers: Collection[str] = (),
    idempotency_header: str | None = None,
    max_response: int = 65_536,
    verify: bool | ssl.SSLContext = True,
    per_job: Collection[str] | None = None,
    timeout: Duration | None = 30,
    retry: Retry | None = None,
) -> Task[..., Coroutine[Any, Any, HttpResult]]:
    """A task that makes a request (GET unless *method* says otherwise) and returns an HttpResult. Needs the extra ``http``.

    An answer whose status is not *expected* (200 to 299 unless given) raises RequestFailed, as does no answer.

    Addresses that are private, loopback, link-local or otherwise not of the public Internet are refused (RequestRefused) unless
    they lie in one of *allow_networks*. That is checked on the addresses that the name has when the connection is made, the
    connection is made to one of those and to no other, and it holds for each redirect alike. Proxies and netrc of the
    environment are not used.

    A redirect is an answer like any other unless *redirects* says how many may be followed; another origin gets neither the
    headers given here nor the body, and none leads from https to http.

    A job gives the URL where it is not fixed here, and then may give method, headers, body, json and expected too. Where it is
    fixed, a job may give what *per_job* names out of these, and otherwise nothing. Headers of a job are added; one that is
    fixed here cannot be given, and headers are fixed here only together with the URL.

    Arguments of jobs are stored as they are, so secrets belong here: what is fixed here is neither stored nor logged, nor part
    of an error. Of a URL errors show the origin alone.

    :param json: sent as JSON in place of a body.
    :param allow_networks: such as "10.1.0.0/16" or "127.0.0.1"; "0.0.0.0/0" and "::/0" together allow all.
    :param keep_headers: names of headers of the answer that are kept in the result.
    :param idempotency_header: such as "Idempotency-Key": is sent with the run's key, which all attempts at one fire time share.
    :param max_response: bytes of the answer that are read.
    :param verify: whether certificates are checked, or the SSLContext that checks them.
    :param timeout: of a run, unless its job has one; None: there is none.
    """
    try:
        from asyncsched.tasks import _request
    except ImportError as error:
        raise MissingExtra('the task http needs httpx: pip install "asyncsched[http]"') from error
    seconds = None if timeout is None else to_seconds(timeout, "http(timeout=)", positive=True)
    policy = _request.Policy(
        networks=_request.networks_of(allow_networks),
        redirects=_count(redirects, "redirects"),
        max_response=_count(max_response, "max_response"),
        keep_headers=frozenset(_names(keep_headers)),
        tls=_request.tls_of(verify),
        timeout_s=seconds,
    )
    own = _request.checked_headers(headers or {})
    if idempotency_header is not None:
        _request.checked_headers({idempotency_header: ""})
    fixed = _fixed(url=url, method=method, body=body, expected=expected)
    if json is not _UNSET:
        fixed["json"] = json
    _refuse_wandering_secrets(_secrets_of(_request, own), fixed, per_job)
    # What is fixed is checked here, and not first when a run fails.
    _made(_request, {"url": "http://localhost", **fixed}, own, {})

    call = functools.partial(_send, _request, policy, own, idempotency_header, name)
    return task_of(call, name, _HINTS, fixed, per_job, timeout=seconds, retry=retry)


async def _send(
    module: Any,
    policy: Policy,
    own: Mapping[str, str],
    idempotency_header: str | None,
    task: str,
    given: Mapping[str, Any],
) -> HttpResult:
    secrets = _secrets_of(module, own)
    request = _made(module, given, own, _key(idempotency_header))
    try:
        answer = await request.send(_in_its_run(policy, task), _expectation(given.get("expected")))
    except RequestFailed as error:
        error.task, error.body = task, _without(secrets, error.body)
        raise
    return HttpResult(
        status=answer.status,
        body=_without(secrets, answer.body),
        truncated=answer.is_truncated,
        headers={header: _without(secrets, value) for header, value in answer.headers.items()},
        redirects=answer.redirects,
    )


def _in_its_run(policy: Policy, task: str) -> Policy:
    """A run of the task is ended by its own timeout, which its job may have set longer; a call of it elsewhere is not."""
    try:
        is_own = current_run().task == task
    except NoCurrentRun:
        return policy
    return replace(policy, timeout_s=None) if is_own else policy


def _secrets_of(module: Any, own: Mapping[str, str]) -> dict[str, str]:
    return {header: value for header, value in own.items() if not module.is_harmless(header)}


def _fixed(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _refuse_wandering_secrets(
    secrets: Mapping[str, str], fixed: Mapping[str, Any], per_job: Collection[str] | None
) -> None:
    is_open = "url" not in fixed if per_job is None else "url" in per_job
    if secrets and is_open:
        raise DefinitionError(
            f"the headers {', '.join(sorted(secrets))} are fixed and the url is not, so that whoever adds a job could have them "
            f"sent anywhere: fix the url too, or let jobs give their own headers"
        )


def _made(module: Any, given: Mapping[str, Any], own: Mapping[str, str], key: Mapping[str, str]) -> Request:
    """The request of a job; raises DefinitionError."""
    if "body" in given and "json" in given:
        raise DefinitionError("a request has body= or json=, and not both")
    added: dict[str, str] = module.checked_headers(given.get("headers", {}))
    if taken := sorted(added.keys() & own.keys()):
        raise DefinitionError(f"the header {taken[0]!r} is fixed by the task, and no job may give it")
    body: str | bytes | None = given.get("body")
    if "json" in given:
        body = _json_of(given["json"])
        added = {"content-type": "application/json", **added}
    _expectation(given.get("expected"))
    request: Request = module.Request(
        url=module.checked_url(given["url"]),
        method=module.checked_method(given.get("method", "GET")),
        headers={**added, **own, **key},
        body=body.encode() if isinstance(body, str) else body,
    )
    return request


def _json_of(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise DefinitionError(f"json cannot be written as JSON: {error}") from error


def _expectation(expected: int | Collection[int] | None) -> Callable[[int], bool]:
    if expected is None:
        return lambda status: 200 <= status < 300
    codes = frozenset([expected] if isinstance(expected, int) else expected)
    if not codes or not all(type(code) is int and 100 <= code <= 599 for code in codes):
        raise DefinitionError(f"expected must be a status or a list of them (100 to 599), not {expected!r}")
    return codes.__contains__


def _key(header: str | None) -> dict[str, str]:
    """All attempts at one fire time share the key. Hashed, since the ids of jobs may hold any character."""
    if header is None:
        return {}
    try:
        key = current_run().idempotency_key
    except NoCurrentRun:
        return {}
    return {header.lower(): hashlib.sha256(key.encode()).hexdigest()[:32]}


def _without(secrets: Mapping[str, str], text: str) -> str:
    """An answer may say back what it was sent."""
    for name, value in secrets.items():
        # Of "Bearer abc" the last word alone is the secret.
        for secret in (value, value.rpartition(" ")[2]):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, f"[{name}]")
    return text


def _names(given: Collection[str]) -> list[str]:
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise DefinitionError(f"http(keep_headers=) takes a list of names of headers, not {given!r}")
    return [name.lower() for name in given]


def _count(value: int, name: str) -> int:
    if type(value) is not int or value < 0:
        raise DefinitionError(f"http({name}=) must be 0 or more, not {value!r}")
    return value
