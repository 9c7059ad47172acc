"""What the command line names: a scheduler in a module, a store's file."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any
from urllib.parse import unquote, unquote_plus, urlencode, urlsplit

from asyncsched import AsyncSchedError, DefinitionError, JobStore, LookupFailed, Scheduler, store_from_url
from asyncsched.address import check_url, without_password

__all__ = ["check_file", "existing", "load_scheduler", "reader", "with_query"]


def load_scheduler(reference: str) -> Scheduler:
    """The scheduler that ``module:attribute`` names; modules of the current folder are found too.

    Raises DefinitionError for what is no reference, and LookupFailed where nothing of the kind is found. A module that fails
    by itself has its traceback printed first: that is its author's to read.
    """
    module_name, _, path = reference.partition(":")
    names = [*module_name.split("."), *path.split(".")]
    if not all(name.isidentifier() for name in names):
        raise DefinitionError(
            f"{reference!r} is no reference to a scheduler: write module:attribute, "
            f"such as app:scheduler for 'scheduler = Scheduler(...)' in app.py"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import(module_name, folder)
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise LookupFailed(f"module {module_name!r} has no {path!r}; {_schedulers_in(module)}") from None
    if not isinstance(found, Scheduler):
        raise LookupFailed(
            f"{reference} is a {type(found).__name__}, not a Scheduler; {_schedulers_in(module)}"
        )
    return found


def check_file(url: str) -> None:
    """Refuse an SQLite file that is not there: to open it would create it, and who only looks should not."""
    if not url.lower().startswith("sqlite://"):
        return
    check_url(url)
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if not parts.netloc and path and not os.path.exists(path):
        raise LookupFailed(f"no jobs are stored at {url}: there is no file {os.path.abspath(path)}")


def reader(url: str) -> Scheduler:
    """A scheduler that runs nothing, on the store at *url*; raises where there is nothing to look into."""
    store = existing(url)
    if not store.capabilities.shared:
        raise DefinitionError(
            f"{without_password(url)} lives and dies with the process that made it, so there is nothing to show; name a shared "
            f"store"
        )
    return Scheduler(store, queues=(), heartbeat=None)


def existing(url: str) -> JobStore:
    """The store at *url*, unopened; where there is none, to open it makes none."""
    check_file(url)
    store = store_from_url(url)
    with suppress(ValueError, TypeError, LookupError):  # It may have no such keyword.
        store = store_from_url(with_query(url, create_schema="false"))
    return store


def with_query(url: str, **more: str) -> str:
    """*url* with those keywords behind its own, or in the place of its own."""
    # Not by urlunsplit, which takes the empty host out of sqlite:///jobs.db.
    address, hash_, fragment = url.partition("#")
    address, _, query = address.partition("?")
    left = [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) not in more]
    return f"{address}?{'&'.join([*left, urlencode(more)])}{hash_}{fragment}"


def _import(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise LookupFailed(
                f"no module {error.name!r} is found from {folder}; go to the folder that holds it, or install it"
            ) from None
        raise _failed(name, error) from error
    except Exception as error:
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> LookupFailed:
    """What to say of a module that fails by itself. Refusals of asyncsched need no traceback: they say what is wrong."""
    own = _outside_importlib(error.__traceback__)
    if not isinstance(error, AsyncSchedError):
        traceback.print_exception(error.with_traceback(own))
    frames = traceback.extract_tb(own)
    mine = [
        frame for frame in frames if not frame.filename.startswith(os.path.dirname(os.path.dirname(__file__)))
    ]
    place = f" ({mine[-1].filename}, line {mine[-1].lineno})" if mine else ""
    return LookupFailed(f"module {name!r} cannot be imported: {type(error).__name__}: {error}{place}")


def _outside_importlib(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is not of the import machinery or of this module."""
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if filename not in (__file__, importlib.__file__) and not filename.startswith("<frozen importlib"):
            return trace
        trace = trace.tb_next
    return None


def _schedulers_in(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Scheduler)]
    if not names:
        return f"it holds no scheduler at all: write 'scheduler = Scheduler(...)' in {module.__name__}"
    return f"write {' or '.join(f'{module.__name__}:{name}' for name in names)}"
