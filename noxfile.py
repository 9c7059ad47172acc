"""Every check of the project, each in an environment of its own: ``nox -l`` lists them."""

import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")


def _packages(*groups: str) -> list[str]:
    """What the named dependency groups of pyproject.toml ask for."""
    return list(nox.project.dependency_groups(PYPROJECT, *groups))


def _lint(session: nox.Session) -> None:
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


def _types(session: nox.Session) -> None:
    session.run("mypy", "--strict")
    session.run("pyright")


def _servers(session: nox.Session) -> dict[str, str]:
    """See to it that the chosen stores have their servers; the URLs of those that docker runs, by variable."""
    with tempfile.TemporaryDirectory() as folder:
        urls = Path(folder) / "urls"
        session.run("python", "-m", "tests.servers.install", f"--env={urls}", *session.posargs)
        return dict(line.split("=", 1) for line in urls.read_text().splitlines())


@nox.session
def tests(session: nox.Session) -> None:
    """Format, lint and types, then the tests: ``nox -s tests -- --stores memory,sqlite``.

    The servers of the stores are installed where they are missing: by apt, or docker runs them.
    """
    session.install("-e", ".[all]", *_packages("test", "lint", "types"))
    _lint(session)
    _types(session)
    # Two at once: a test and its server wait for each other most of the time. ``-- -n 0`` runs them one by one.
    session.run("pytest", "-n", "2", "--dist", "loadgroup", *session.posargs, env=_servers(session))


@nox.session
def demo(session: nox.Session) -> None:
    """The demonstration, from the package as a user installs it."""
    session.install(".[sqlite,cli]")
    session.run("asyncsched", "demo", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install(*_packages("lint"))
    _lint(session)


@nox.session
def types(session: nox.Session) -> None:
    """mypy and pyright."""
    session.install("-e", ".[all]", *_packages("test", "types"))
    _types(session)


@nox.session
def hypothesis(session: nox.Session) -> None:
    """The triggers against other readers of cron and a minute-by-minute walk, in every time zone: about half an hour."""
    session.install("-e", ".[all]", *_packages("test"))
    session.run("pytest", "--long", "tests/unit/triggers", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, into docs/_build/html; a warning is an error."""
    session.install(".[all]", *_packages("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks; what they compare with, they install apart by themselves."""
    session.install("-e", ".[all]")
    session.run("python", "-m", "benchmarks", *session.posargs)
