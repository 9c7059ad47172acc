"""Firestore for tests: Google's emulator, which keeps its data in memory only."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.servers.server import CannotStart, Server, find_program

__all__ = ["JAR", "PLACES", "FirestoreServer", "FrontedFirestoreServer"]

JAR = "cloud-firestore-emulator.jar"
#: Where its packages put it: those of a distribution, and gcloud's own components.
PLACES = (
    "/usr/lib/google-cloud-sdk/platform/cloud-firestore-emulator",
    "/google-cloud-sdk/platform/cloud-firestore-emulator",
    "/opt/google-cloud-sdk/platform/cloud-firestore-emulator",
    "/opt/homebrew/share/google-cloud-sdk/platform/cloud-firestore-emulator",
)


class FirestoreServer(Server):
    """One emulator. It forgets everything when it ends, be it in good order."""

    needs = "google-cloud-cli-firestore-emulator and a Java runtime (11 or later)"

    @property
    def url(self) -> str:
        return f"firestore://test/asyncsched?emulator_host=127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def command(self) -> Sequence[str | Path]:
        jar = find_program(JAR, *PLACES)
        if jar is None:
            raise CannotStart(
                f"{JAR} is not installed: install {self.needs}, or leave its store out with --stores"
            )
        return [
            self.find("java"), "-Duser.language=en", "-Xmx768m", "-cp", jar,
            "com.google.cloud.datastore.emulator.firestore.CloudFirestore",
            "--host=127.0.0.1", f"--port={self.port}", "--project_id=test",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except http.client.HTTPException:
            return False
        finally:
            connection.close()


class FrontedFirestoreServer(FirestoreServer):
    """An emulator that can be taken away and brought back with its data: what is stopped, killed, frozen and started again is
    a front before it, through which all connections go. The emulator itself goes on, as the data in the cloud would."""

    def prepare(self) -> None:
        self._behind = FirestoreServer()
        self._behind.start()

    def command(self) -> Sequence[str | Path]:
        front = Path(__file__).with_name("front.py")
        return [sys.executable, front, str(self.port), str(self._behind.port)]

    def as_user(self, command: Sequence[str | Path]) -> list[str]:
        """As whoever runs the tests: another user may not reach their interpreter."""
        return [str(word) for word in command]

    def remove(self) -> None:
        super().remove()
        if hasattr(self, "_behind"):
            self._behind.remove()
