"""What the command line names: a scheduler in a module, a store's file."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from asyncsched import AsyncSchedError, DefinitionError, LookupFailed, Scheduler

__all__ = ["check_file", "load_scheduler"]


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
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "sqlite" and not parts.netloc and path and not os.path.exists(path):
        raise LookupFailed(f"no jobs are stored at {url}: there is no file {os.path.abspath(path)}")


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
