"""Makes sure that the tests find their servers: ``python -m tests.servers.install --env FILE [pytest's arguments]``.

What is missing for the chosen stores comes from apt where this is root on Debian or Ubuntu, else from docker; where there is
neither, a message says what to install. FILE gets a line ``ASYNCSCHED_TEST_REDIS_URL=...`` for each server that runs in docker.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.servers.firestore import JAR as FIRESTORE_JAR
from tests.servers.firestore import PLACES as FIRESTORE_PLACES
from tests.servers.postgres import PLACES as POSTGRES_PLACES
from tests.servers.running import SERVERS, url_given_for, variable_of
from tests.servers.server import find_program
from tests.servers.zookeeper import JARS
from tests.support.faketime import LIBRARY, LIBRARY_PLACES

__all__ = ["NEEDS", "Facts", "Need", "Plan", "plan"]

COMPOSE_FILE = Path(__file__).with_name("compose.yaml")
POLICY = Path("/usr/sbin/policy-rc.d")

# ---- what to do: from facts alone ------------------------------------------------------------------------------------------


class Need(NamedTuple):
    """A program or library, and Debian's package of it."""

    name: str
    package: str
    #: The kinds of server whose tests need it.
    kinds: frozenset[str]
    places: Sequence[str] = ()


def _kinds(*names: str) -> frozenset[str]:
    return frozenset(names)


#: Google's package of Firestore's emulator, which only those machines know that were told of Google's packages.
EMULATOR = "google-cloud-cli-firestore-emulator"
#: By kind: what runs the server itself.
PROGRAMS: Mapping[str, Need] = {
    "redis": Need("redis-server", "redis-server", _kinds("redis")),
    "postgres": Need("postgres", "postgresql", _kinds("postgres"), POSTGRES_PLACES),
    "mariadb": Need("mariadbd", "mariadb-server", _kinds("mariadb"), ("/usr/sbin",)),
    "mysql": Need("mysqld", "mysql-server", _kinds("mysql")),
    "mongodb": Need("documentdb", "mongodb-org", _kinds("mongodb")),
    "firestore": Need(FIRESTORE_JAR, EMULATOR, _kinds("firestore"), FIRESTORE_PLACES),
    "etcd": Need("etcd", "etcd-server", _kinds("etcd")),
    "zookeeper": Need("zookeeper.jar", "zookeeper", _kinds("zookeeper"), (JARS,)),
}
#: MySQL and MongoDB are not in Debian: ``tests.servers.mysql`` and ``.mongodb`` make them, or what stands in for them, with this.
MAKER = Need("debootstrap", "debootstrap", _kinds("mysql", "mongodb"), ("/usr/sbin",))
#: And what some tests need beside it.
TOOLS = (
    Need("etcdctl", "etcd-client", _kinds("etcd")),
    Need("java", "default-jre-headless", _kinds("firestore")),
    Need("pgbouncer", "pgbouncer", _kinds("postgres"), ("/usr/sbin",)),
    Need(LIBRARY, "libfaketime", frozenset(SERVERS), LIBRARY_PLACES),
)
NEEDS = (*PROGRAMS.values(), MAKER, *TOOLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a plan is made from."""

    #: The stores that the tests are to cover; those without a server of their own need nothing.
    stores: frozenset[str]
    #: Kinds whose server's URL is in the environment.
    given: frozenset[str]
    #: The names of needs that are met.
    found: frozenset[str]
    #: Whether packages can be installed: root, on Debian or Ubuntu.
    has_apt: bool
    #: Whether containers can be run.
    has_docker: bool
    #: Whether apt knows Firestore's emulator.
    offers_emulator: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done, in this order."""

    packages: tuple[str, ...] = ()
    makes_mysql: bool = False
    makes_mongodb: bool = False
    #: Kinds whose servers docker runs.
    contained: tuple[str, ...] = ()
    #: Kinds that nothing can be done for.
    missing: tuple[str, ...] = ()


def plan(facts: Facts) -> Plan:
    """What to install, so that each chosen store has its server. A server that is given or found is never touched."""
    kinds = [kind for kind in SERVERS if kind in facts.stores - facts.given]
    without = tuple(kind for kind in kinds if PROGRAMS[kind].name not in facts.found)
    if facts.has_apt:
        makes_mysql, makes_mongodb = "mysql" in without, "mongodb" in without
        elsewhere = () if facts.offers_emulator else tuple(kind for kind in without if kind == "firestore")
        wanted = [PROGRAMS[kind] for kind in without if kind not in ("mysql", "mongodb", *elsewhere)]
        wanted += [MAKER] if makes_mysql or makes_mongodb else []
        wanted += [tool for tool in TOOLS if tool.kinds & set(kinds)]
        packages = tuple(need.package for need in wanted if need.name not in facts.found)
        return Plan(
            packages=packages,
            makes_mysql=makes_mysql,
            makes_mongodb=makes_mongodb,
            contained=elsewhere if facts.has_docker else (),
            missing=() if facts.has_docker else elsewhere,
        )
    if facts.has_docker:
        return Plan(contained=without)
    return Plan(missing=without)


def message_about(missing: Sequence[str]) -> str:
    """What is missing, and each way to get it."""
    lines = [f"These servers are not installed: {', '.join(missing)}. One of:"]
    packages = " ".join(
        PROGRAMS[kind].package for kind in missing if kind not in ("mysql", "mongodb", "firestore")
    )
    if packages:
        lines.append(f"- install them; on Debian and Ubuntu: sudo apt-get install {packages}")
    if "mysql" in missing:
        lines.append("- install MySQL 8.0 or later, so that mysqld is on PATH (dev.mysql.com/downloads)")
    if "mongodb" in missing:
        lines.append(
            "- run MongoDB 5.0 or later as a replica set, which may have one member, and name it (see below)"
        )
    if "firestore" in missing:
        lines.append(
            f"- install Google's package {EMULATOR}, or gcloud's component cloud-firestore-emulator, and Java"
        )
    lines.append("- start docker, which then runs them")
    lines.append(f"- name servers that run: {' '.join(f'{variable_of(kind)}=...' for kind in missing)}")
    lines.append("- leave them out: nox -s tests -- --stores memory,sqlite")
    return "\n".join(lines)


# ---- doing it --------------------------------------------------------------------------------------------------------------


def facts_for(stores: frozenset[str]) -> Facts:
    """How things are on this machine."""
    is_debian = _has_root() and shutil.which("apt-get") is not None and _is_like_debian()
    return Facts(
        stores=stores,
        given=frozenset(kind for kind in SERVERS if url_given_for(kind) is not None),
        found=frozenset(need.name for need in NEEDS if _is_here(need)),
        has_apt=is_debian,
        has_docker=(not is_debian or "firestore" in stores)
        and _succeeds("docker", "compose", "version")
        and _succeeds("docker", "info"),
        offers_emulator=is_debian and _is_offered(EMULATOR),
    )


def carry_out(plan: Plan) -> dict[str, str]:
    """Do it, and return the URLs of what docker runs, by variable; exits with a message where something fails."""
    if plan.missing:
        sys.exit(message_about(plan.missing))
    if plan.packages:
        print(f"installing {' '.join(plan.packages)} ...", flush=True)
        with _without_autostart():
            _install(plan.packages)
    for kind, makes in (("mysql", plan.makes_mysql), ("mongodb", plan.makes_mongodb)):
        if makes:
            # It takes a minute, and tells what it does.
            made = subprocess.run([sys.executable, "-m", f"tests.servers.{kind}"], check=False)
            if made.returncode:
                sys.exit(made.returncode)
    if plan.contained:
        return _urls_from_docker(plan.contained)
    return {}


def _install(packages: Sequence[str]) -> None:
    """The package lists are fetched only when an install fails without: they are missing, or too old."""
    install = [
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *packages,
    ]
    if _run(*install).returncode:
        _run_or_exit("apt-get", "update")
        _run_or_exit(*install)


@contextlib.contextmanager
def _without_autostart() -> Iterator[None]:
    """Packages start no service: Debian's policy-rc.d forbids it meanwhile, and is put back as it was."""
    saved = POLICY.with_name(f"{POLICY.name}.asyncsched")
    was_there = POLICY.exists()
    if was_there:
        POLICY.replace(saved)
    try:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
        yield
    finally:
        if was_there:
            saved.replace(POLICY)
        else:
            POLICY.unlink(missing_ok=True)


def _urls_from_docker(kinds: Sequence[str]) -> dict[str, str]:
    """Containers that go on after the tests, so that the next run finds them."""
    compose = ["docker", "compose", "--file", str(COMPOSE_FILE)]
    _run_or_exit(*compose, "up", "--detach", "--wait", *kinds)
    print(f"docker runs {', '.join(kinds)}; to end that: {' '.join(compose)} down", flush=True)
    urls = {}
    for kind in kinds:
        port, url = _IN_DOCKER[kind]
        published = _run(*compose, "port", kind, str(port)).stdout.strip()
        urls[variable_of(kind)] = url.format(published)
    return urls


#: By kind: the port in its container, and its URL once the port here is known.
_IN_DOCKER: Mapping[str, tuple[int, str]] = {
    "redis": (6379, "redis://{}/0"),
    "postgres": (5432, "postgresql://postgres@{}/postgres"),
    "mariadb": (3306, "mariadb://root@{}/test"),
    "mysql": (3306, "mysql://root@{}/test"),
    "mongodb": (27017, "mongodb://{}/test?directConnection=true"),
    "firestore": (8080, "firestore://test/asyncsched?emulator_host={}"),
    "etcd": (2379, "etcd://{}"),
    "zookeeper": (2181, "zk://{}"),
}


def _has_root() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0


def _is_like_debian() -> bool:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return False
    return bool({"debian", "ubuntu"} & {release["ID"], *release.get("ID_LIKE", "").split()})


def _is_here(need: Need) -> bool:
    found = find_program(need.name, *need.places)
    # MariaDB installs itself under the other's name too.
    return found is not None and (need.name != "mysqld" or found.resolve().name != "mariadbd")


def _is_offered(package: str) -> bool:
    """Whether apt could install it. Its lists may be missing, and then it cannot."""
    known = _run("apt-cache", "policy", package).stdout
    return "Candidate:" in known and "Candidate: (none)" not in known


def _succeeds(*command: str) -> bool:
    return shutil.which(command[0]) is not None and _run(*command).returncode == 0


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        check=False,
    )


def _run_or_exit(*command: str) -> None:
    done = _run(*command)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-5000:]}{done.stderr[-5000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--stores", default=",".join(SERVERS))
    parser.add_argument("--env", type=Path, required=True)
    options, _of_pytest = parser.parse_known_args()
    stores = frozenset(name.strip() for name in options.stores.split(","))
    urls = carry_out(plan(facts_for(stores)))
    options.env.write_text("".join(f"{name}={url}\n" for name, url in urls.items()))


if __name__ == "__main__":
    main()
