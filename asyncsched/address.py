"""URLs of stores: the keywords behind the question mark, and how a URL is shown without its password."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from asyncsched.errors import DefinitionError

__all__ = ["check_url", "flag", "keywords_of", "without_password"]

#: A login whose password holds what ends the host's part of a URL; or else ports, and an @ behind them.
_CUT_LOGIN = re.compile(r"(?P<user>[^:/?#]*://[^:/?#@\[]*):(?P<secret>[^@/?#]*[/?#].*)@", re.DOTALL)
_PORTS = re.compile(r"\d*(?:,[^,:/?#]*(?::\d*)?)*[/?#]")
_NO_SLASHES = re.compile(r"([^:/?#]*):[^/]*@")
_SECRET = re.compile(r"([?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&#]*", re.IGNORECASE)
#: The password of a URL that is a keyword's value, quoted or not.
_INNER_SECRET = re.compile(
    r"([?&][^=&#]*=[^&#]*?(?::|%3A)(?:/|%2F){2}(?:(?!%3A|%40)[^&#:@])*(?::|%3A))[^&#]*(@|%40)", re.IGNORECASE
)

Readers = Mapping[str, Callable[[str], object]]


def flag(text: str) -> bool:
    """``true`` or ``false``; raises ValueError for anything else."""
    found = {"true": True, "false": False, "1": True, "0": False}.get(text.lower())
    if found is None:
        raise ValueError(text)
    return found


def keywords_of(url: str, readers: Readers, *, others: bool = False) -> tuple[str, dict[str, Any]]:
    """*url* without the keywords that *readers* know, and those keywords as values.

    A keyword that no reader knows stays in the URL where *others* are welcome, such as the driver's own. Raises
    DefinitionError for one that is not, for one given twice and for a value that its reader refuses with ValueError.
    """
    parts = urlsplit(url)
    found: dict[str, Any] = {}
    left: list[tuple[str, str]] = []
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        reader = readers.get(name)
        if reader is None:
            if not others:
                raise DefinitionError(
                    f"unknown keyword {name!r} in {without_password(url)!r}; known: {', '.join(sorted(readers))}"
                )
            left.append((name, text))
        elif name in found:
            raise DefinitionError(f"{name} stands twice in {without_password(url)!r}: give it once")
        else:
            found[name] = _read(name, text, reader, url)
    return urlunsplit(parts._replace(query=urlencode(left, quote_via=quote))), found


def _read(name: str, text: str, reader: Callable[[str], object], url: str) -> object:
    try:
        return reader(text)
    except ValueError:
        kinds = {flag: "true or false", float: "a number", int: "a whole number"}
        wanted = kinds.get(reader, "something else")
        raise DefinitionError(
            f"{name} cannot be {text!r} in {without_password(url)!r}: {wanted} is wanted"
        ) from None


def check_url(url: str) -> None:
    """Raise DefinitionError for what is no URL, and for a login that was not written as one asks for it."""
    try:
        urlsplit(url)
    except ValueError:
        # What it says may hold the password.
        raise DefinitionError(f"{without_password(url)!r} is no URL: its host cannot be read") from None
    cut = _CUT_LOGIN.match(url)
    if cut is not None and not _PORTS.match(cut["secret"]):
        raise DefinitionError(
            f"the password in {without_password(url)!r} has one of / ? #: write / as %2F, ? as %3F and # as %23"
        )


def without_password(url: str) -> str:
    """*url* as it may be shown and logged: ``***`` stands for each secret in it."""
    start = url.find("://") + 3
    netloc = re.split(r"[/?#]", url[start:], maxsplit=1)[0] if start > 2 else ""
    login, at, hosts = netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        url = url.replace(netloc, f"{user}:***{at}{hosts}", 1)
    elif not at:
        # Rather too much is hidden, such as a path with an @, than a password that was not written as a URL wants it.
        wrong = _CUT_LOGIN if start > 2 else _NO_SLASHES
        url = wrong.sub(r"\1:***@", url, count=1)
    return _INNER_SECRET.sub(r"\1***\2", _SECRET.sub(r"\1***", url))
