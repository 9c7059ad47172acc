"""etcd for tests: one member, one that asks for passwords, one that speaks TLS, and a cluster of three."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.server import CannotStart, Server, free_port

__all__ = ["EtcdCluster", "EtcdServer"]

_CLUSTER_S = 30.0


class EtcdServer(Server):
    """One member; *arguments* are added to its command line. With *members* it is one of a cluster of these."""

    needs = "etcd-server"

    def __init__(
        self, folder: Path | None = None, *arguments: str, name: str = "default", scheme: str = "http"
    ) -> None:
        super().__init__(folder)
        self.name = name
        self.peer_port = free_port()
        #: By name, the peer URLs of all members.
        self.members: Mapping[str, str] = {name: self.peer_url}
        self._arguments = arguments
        self._scheme = scheme

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def prepare(self) -> None:
        self.data = self.make_folder("data")

    def command(self) -> Sequence[str | Path]:
        clients = f"{self._scheme}://127.0.0.1:{self.port}"
        return [
            self.find("etcd"), "--name", self.name, "--data-dir", self.data,
            "--listen-client-urls", clients, "--advertise-client-urls", clients,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", ",".join(f"{name}={url}" for name, url in self.members.items()),
            "--logger", "zap", "--log-level", "error", *self._arguments,
        ]  # fmt: skip

    def is_ready(self) -> bool:
        # A member of a cluster has no leader before others are there.
        if len(self.members) > 1 or self._scheme != "http":
            return True
        return self.is_healthy()

    def is_healthy(self) -> bool:
        """Whether it has a leader, and takes writes; may raise OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5.0) as reply:
            return bool(json.load(reply)["health"] == "true")

    def metric(self, name: str) -> float:
        """The sum of one of its counters."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5.0) as reply:
            lines = reply.read().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == name
        )

    def control(self, *words: str, login: str = "") -> str:
        """What etcdctl prints."""
        user = ["--user", login] if login else []
        done = subprocess.run(
            [self.find("etcdctl"), "--endpoints", f"127.0.0.1:{self.port}", *user, *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            env={**self.environment(), "ETCDCTL_API": "3"},
        )  # fmt: skip
        if done.returncode:
            raise CannotStart(f"etcdctl {' '.join(words)} failed:\n{done.stderr[-2000:]}")
        return done.stdout

    def ask_for_passwords(self, password: str, **prefixes: str) -> None:
        """Switch authentication on: *password* is that of root, and of a user for each keyword, who may read and write the keys
        that begin with its value."""
        self.control("user", "add", f"root:{password}")
        self.control("user", "grant-role", "root", "root")
        for user, prefix in prefixes.items():
            self.control("user", "add", f"{user}:{password}")
            self.control("role", "add", user)
            self.control("role", "grant-permission", "--prefix=true", user, "readwrite", prefix)
            self.control("user", "grant-role", user, user)
        self.control("auth", "enable")


class EtcdCluster:
    """Three members that vote."""

    def __init__(self, members: int = 3) -> None:
        self.members = [
            EtcdServer(None, "--heartbeat-interval", "50", "--election-timeout", "500", name=f"m{n}")
            for n in range(members)
        ]
        for member in self.members:
            member.members = {each.name: each.peer_url for each in self.members}

    @property
    def url(self) -> str:
        return f"etcd://{','.join(f'127.0.0.1:{member.port}' for member in self.members)}"

    def start(self) -> None:
        """Start all, and return once they have a leader; raises CannotStart."""
        for member in self.members:
            member.start()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Return once all that are alive have a leader; raises CannotStart."""
        Server._wait(lambda: all(map(_is_healthy, self.alive)), _CLUSTER_S)
        if not all(map(_is_healthy, self.alive)):
            raise CannotStart(f"the cluster did not come together:\n{self.members[0].log[-2000:]}")

    @property
    def alive(self) -> list[EtcdServer]:
        return [member for member in self.members if member.is_alive]

    @property
    def leader(self) -> EtcdServer:
        """The member that leads."""
        return next(member for member in self.alive if member.metric("etcd_server_is_leader"))

    def remove(self) -> None:
        for member in self.members:
            member.remove()


def _is_healthy(member: EtcdServer) -> bool:
    try:
        return member.is_healthy()
    except OSError:
        return False
