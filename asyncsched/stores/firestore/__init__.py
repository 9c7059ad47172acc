"""Jobs in Google's Firestore, shared by any number of processes and hosts."""

from __future__ import annotations

from asyncsched.errors import MissingExtra

try:
    import google.cloud.firestore_v1  # noqa: F401 - without it the next import would not say what is missing
except ImportError as error:
    raise MissingExtra(
        'the Firestore store needs google-cloud-firestore: pip install "asyncsched[firestore]"'
    ) from error

from asyncsched.stores.firestore._store import FirestoreStore

__all__ = ["FirestoreStore"]
