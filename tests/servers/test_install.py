"""What is installed for which tests: decided from facts alone."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from tests.servers import install
from tests.servers.install import NEEDS, PROGRAMS, Facts, Plan, message_about, plan
from tests.servers.running import SERVERS

ALL = frozenset(SERVERS)
EVERYTHING = frozenset(need.name for need in NEEDS)
NOTHING: frozenset[str] = frozenset()


def facts(
    stores: frozenset[str] = ALL,
    given: frozenset[str] = NOTHING,
    found: frozenset[str] = NOTHING,
    has_apt: bool = True,
    has_docker: bool = False,
    offers_emulator: bool = False,
) -> Facts:
    return Facts(
        stores=stores,
        given=given,
        found=found,
        has_apt=has_apt,
        has_docker=has_docker,
        offers_emulator=offers_emulator,
    )


def test_every_kind_of_server_has_a_program_and_a_container() -> None:
    assert PROGRAMS.keys() == install._IN_DOCKER.keys() == ALL
    services = install.COMPOSE_FILE.read_text()
    assert all(f"\n  {kind}:\n" in services for kind in ALL)


def test_apt_installs_what_all_stores_need_where_nothing_is_there() -> None:
    made = plan(facts(offers_emulator=True))
    assert {
        "redis-server", "postgresql", "mariadb-server", "etcd-server", "zookeeper", "debootstrap", "pgbouncer", "libfaketime",
    } <= set(made.packages)  # fmt: skip
    assert (made.makes_mysql, made.makes_mongodb, made.contained, made.missing) == (True, True, (), ())


def test_only_what_the_chosen_stores_need_is_installed() -> None:
    assert plan(facts(frozenset({"memory", "redis"}))) == Plan(packages=("redis-server", "libfaketime"))
    assert plan(facts(frozenset({"postgres"}))).packages == ("postgresql", "pgbouncer", "libfaketime")
    assert plan(facts(frozenset({"mysql"}))) == Plan(
        packages=("debootstrap", "libfaketime"), makes_mysql=True
    )


@pytest.mark.parametrize("has_apt", [True, False])
@pytest.mark.parametrize("has_docker", [True, False])
def test_stores_without_a_server_need_nothing(has_apt: bool, has_docker: bool) -> None:
    stores = frozenset({"memory", "sqlite"})
    assert plan(facts(stores, has_apt=has_apt, has_docker=has_docker)) == Plan()


def test_mysql_and_mongodb_are_made_from_what_is_there() -> None:
    found = frozenset({"debootstrap", install.LIBRARY})
    assert plan(facts(frozenset({"mysql"}), found=found)) == Plan(makes_mysql=True)
    assert plan(facts(frozenset({"mongodb"}), found=found)) == Plan(makes_mongodb=True)


@pytest.mark.parametrize("has_apt", [True, False])
@pytest.mark.parametrize("has_docker", [True, False])
def test_what_is_there_is_not_installed_again(has_apt: bool, has_docker: bool) -> None:
    assert plan(facts(found=EVERYTHING, has_apt=has_apt, has_docker=has_docker)) == Plan()


@pytest.mark.parametrize("has_apt", [True, False])
@pytest.mark.parametrize("has_docker", [True, False])
def test_a_server_that_is_named_needs_no_install(has_apt: bool, has_docker: bool) -> None:
    assert plan(facts(given=ALL, has_apt=has_apt, has_docker=has_docker)) == Plan()


def test_a_missing_tool_is_installed_beside_a_server_that_is_there() -> None:
    assert plan(facts(found=EVERYTHING - {"pgbouncer"})) == Plan(packages=("pgbouncer",))


def test_docker_runs_the_servers_that_are_missing_where_there_is_no_apt() -> None:
    found = frozenset({"postgres"})
    made = plan(facts(given=frozenset({"redis"}), found=found, has_apt=False, has_docker=True))
    assert made == Plan(contained=tuple(kind for kind in SERVERS if kind not in ("redis", "postgres")))


def test_without_apt_and_docker_what_is_missing_is_named_with_every_remedy() -> None:
    made = plan(facts(found=frozenset({"redis-server"}), has_apt=False))
    assert made == Plan(missing=tuple(kind for kind in SERVERS if kind != "redis"))
    message = message_about(made.missing)
    for remedy in (
        "postgres, mariadb, mysql",
        "apt-get install postgresql mariadb-server",
        "mysqld",
        "docker",
        "ASYNCSCHED_TEST_MYSQL_URL=",
        "MongoDB 5.0 or later as a replica set",
        "--stores memory,sqlite",
    ):
        assert remedy in message


def test_an_install_that_cannot_be_made_ends_with_the_message() -> None:
    with pytest.raises(SystemExit, match="not installed: mariadb"):
        install.carry_out(Plan(missing=("mariadb",)))


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 0\n"], ids=["absent", "present"])
def test_services_are_kept_from_starting_and_the_policy_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(install, "POLICY", policy)
    if before is not None:
        policy.write_text(before)
        policy.chmod(0o744)
    with pytest.raises(RuntimeError), install._without_autostart():  # noqa: PT012 - what ends it does not matter
        assert policy.read_text().endswith("exit 101\n")
        assert os.access(policy, os.X_OK)
        raise RuntimeError
    if before is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert list(tmp_path.iterdir()) == [policy]
        assert policy.read_text() == before
        assert stat.S_IMODE(policy.stat().st_mode) == 0o744


def test_what_an_installer_prints_is_shown_when_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no such package"):
        install._run_or_exit("sh", "-c", "echo no such package >&2; exit 1")
    install._run_or_exit("sh", "-c", "echo all went well")
    assert capfd.readouterr() == ("", "")


def test_the_firestore_emulator_comes_from_apt_where_apt_knows_it_else_from_docker_else_it_is_said() -> None:
    wanted = facts(frozenset({"firestore"}), found=frozenset({"java", install.LIBRARY}))
    assert plan(replace(wanted, offers_emulator=True)) == Plan(packages=(install.EMULATOR,))
    assert plan(replace(wanted, has_docker=True)) == Plan(contained=("firestore",))
    assert plan(wanted) == Plan(missing=("firestore",))
    assert install.EMULATOR in message_about(["firestore"])
