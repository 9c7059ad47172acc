"""MongoDB's protocol in front of DocumentDB: ``python -m tests.servers.mongo_gateway --port 27017 --engine postgresql://...``.

It reads each command as its bytes and hands it to the function of DocumentDB's that does it; what is computed, is computed there.
Of MongoDB's protocol it has what clients need that send commands: no transactions, no sessions and no change streams.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import itertools
import os
import ssl
import struct
from collections.abc import Mapping
from typing import Any

import asyncpg
import bson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

_LAZY = CodecOptions(document_class=RawBSONDocument)
_HEADER = struct.Struct("<iiii")
_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_MORE_TO_COME = 2
_ITERATIONS = 4096

_HELLO = {
    "ismaster": True, "isWritablePrimary": True, "helloOk": True, "msg": "isdbgrid", "maxBsonObjectSize": 1 << 24,
    "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 21,
    "readOnly": False, "logicalSessionTimeoutMinutes": 30,
}  # fmt: skip
_ANYONE = {"hello", "ismaster", "buildinfo", "saslstart", "saslcontinue", "ping"}

#: By the state of PostgreSQL's that the engine tells.
_CODES = {
    "M001C": (11000, "DuplicateKey"),
    "23505": (11000, "DuplicateKey"),
    "23P01": (11000, "DuplicateKey"),
    "M0001": (2, "BadValue"),
    "M0003": (9, "FailedToParse"),
    "40001": (112, "WriteConflict"),
    "40P01": (112, "WriteConflict"),
    "55P03": (24, "LockTimeout"),
}
_FIRST_PAGES = {
    "find": "find",
    "aggregate": "aggregate",
    "listindexes": "list_indexes",
    "listcollections": "list_collections",
}


class Refused(Exception):
    """A command that is answered with an error."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.reply = {"ok": 0.0, "errmsg": message, "code": code, "codeName": name}


class Gateway:
    """What all connections share: the way to the engine, and the cursors that are open."""

    def __init__(self, engine: str, password: str | None) -> None:
        self.password = password
        self._engine = engine
        self._pool: Any = None
        self._numbers = itertools.count(1)
        #: By number: the database, where to go on, the connection that must do it, and the session that it belongs to.
        self._cursors: dict[int, tuple[str, bytes, Any, bytes]] = {}

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(self._engine, min_size=1, max_size=24)

    async def perform(self, command: bytes, sections: bytes) -> bytes | Mapping[str, Any]:
        """The reply to *command*, whose documents may have come apart from it in *sections*."""
        asked = RawBSONDocument(command, _LAZY)
        name = next(iter(asked)).lower()
        match name:
            case "hello" | "ismaster":
                return {**_HELLO, "ok": 1.0}
            case "ping" | "endsessions":
                return {"ok": 1.0}
            case "buildinfo":
                return {"version": "7.0.0", "versionArray": [7, 0, 0, 0], "ok": 1.0}
            case "getmore":
                return await self._get_more(asked, command)
            case "killcursors":
                return await self._kill(asked["cursors"])
        try:
            if name in _FIRST_PAGES:
                return await self._first_page(name, asked["$db"], command, _session_of(asked))
            async with self._pool.acquire() as connection:
                return await self._write(connection, name, asked, command, sections)
        except asyncpg.PostgresError as error:
            raise _refusal(error) from error
        except (OSError, asyncpg.InterfaceError) as error:
            raise Refused(91, "ShutdownInProgress", f"the engine is away: {error}") from error

    async def _write(
        self, connection: Any, name: str, asked: Mapping[str, Any], command: bytes, sections: bytes
    ) -> bytes | Mapping[str, Any]:
        database = asked["$db"]
        match name:
            case "insert" | "update" | "delete":
                reply: bytes = await connection.fetchval(
                    f"SELECT p_result::bytea FROM documentdb_api.{name}($1, $2::bytea::documentdb_core.bson, "
                    "$3::bytea::documentdb_core.bsonsequence)",
                    database, command, sections or None,
                )  # fmt: skip
                return _with_codes(reply)
            case "findandmodify":
                return await _value(connection, "p_result", "documentdb_api.find_and_modify", database, command)  # fmt: skip
            case "count" | "distinct":
                return await _value(connection, "document", f"documentdb_api.{name}_query", database, command)
            case "createindexes":
                return await _value(
                    connection,
                    "t",
                    "documentdb_api_internal.create_indexes_non_concurrently",
                    database,
                    command,
                    ", true",
                )
            case "drop" | "create":
                await connection.execute(
                    f"SELECT documentdb_api.{name}_collection($1, $2)", database, asked[next(iter(asked))]
                )
                return {"ok": 1.0}
            case "dropdatabase":
                await connection.execute("SELECT documentdb_api.drop_database($1)", database)
                return {"ok": 1.0}
        raise Refused(59, "CommandNotFound", f"no such command: '{name}'")

    # -- cursors -------------------------------------------------------------------------------------------------------

    async def _first_page(self, name: str, database: str, command: bytes, session: bytes) -> bytes:
        connection = await self._pool.acquire()
        keeps = False
        try:
            page, more, keeps, number = await connection.fetchrow(
                "SELECT cursorpage::bytea, continuation::bytea, persistconnection, cursorid "
                f"FROM documentdb_api.{_FIRST_PAGES[name]}_cursor_first_page($1, $2::bytea::documentdb_core.bson)",
                database,
                command,
            )
            keeps = bool(keeps and number and more is not None)
            if number and more is not None:
                self._cursors[number] = (database, more, connection if keeps else None, session)
            return bytes(page)
        finally:
            if not keeps:
                await self._pool.release(connection)

    async def _get_more(self, asked: Mapping[str, Any], command: bytes) -> bytes:
        number = asked["getMore"]
        if number not in self._cursors:
            raise Refused(43, "CursorNotFound", f"cursor id {number} not found")
        if self._cursors[number][3] != _session_of(asked):
            raise Refused(50738, "Location50738", f"cursor id {number} belongs to another session")
        database, where, kept, session = self._cursors.pop(number)
        connection = kept or await self._pool.acquire()
        is_open = False
        try:
            page, more = await connection.fetchrow(
                "SELECT cursorpage::bytea, continuation::bytea FROM documentdb_api.cursor_get_more("
                "$1, $2::bytea::documentdb_core.bson, $3::bytea::documentdb_core.bson)",
                database,
                command,
                where,
            )
            is_open = more is not None and bool(bson.decode(page)["cursor"]["id"])
            if is_open:
                self._cursors[number] = (database, more, kept, session)
            return bytes(page)
        except asyncpg.PostgresError as error:
            raise _refusal(error) from error
        finally:
            if not (is_open and kept):
                await self._pool.release(connection)

    async def _kill(self, numbers: list[int]) -> Mapping[str, Any]:
        for number in numbers:
            _, _, kept, _ = self._cursors.pop(number, (None, None, None, None))
            if kept is not None:
                await self._pool.release(kept)
        return {
            "cursorsKilled": numbers,
            "cursorsNotFound": [],
            "cursorsAlive": [],
            "cursorsUnknown": [],
            "ok": 1.0,
        }


class Client:
    """One connection."""

    def __init__(self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gateway = gateway
        self._reader, self._writer = reader, writer
        self._login = Login(gateway.password) if gateway.password is not None else None

    async def serve(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                size, request, _, kind = _HEADER.unpack(await self._reader.readexactly(16))
                await self._answer(request, kind, await self._reader.readexactly(size - 16))
                await self._writer.drain()
        self._writer.close()

    async def _answer(self, request: int, kind: int, body: bytes) -> None:
        if kind == _OP_QUERY:  # A client's first word, before it knows what the server speaks.
            start = body.index(0, 4) + 9
            reply = await self._reply(body[start : start + _length(body, start)], b"")
            prefix = struct.pack("<iqii", 8, 0, 0, 1)
            kind = _OP_REPLY
        elif kind == _OP_MSG:
            (flags,) = struct.unpack_from("<I", body)
            reply = await self._reply(*_parted(body, len(body) - 4 * (flags & 1)))
            if flags & _MORE_TO_COME:
                return
            prefix = b"\0\0\0\0\0"
        else:
            raise ConnectionError(f"a message of kind {kind}")
        self._writer.write(_HEADER.pack(16 + len(prefix) + len(reply), 1, request, kind) + prefix + reply)

    async def _reply(self, command: bytes, sections: bytes) -> bytes:
        try:
            name = next(iter(RawBSONDocument(command, _LAZY))).lower()
            if self._login is not None:
                if name in ("saslstart", "saslcontinue"):
                    return bson.encode(self._login.step(bson.decode(command)))
                if not self._login.is_done and name not in _ANYONE:
                    raise Refused(13, "Unauthorized", f"Command {name} requires authentication")
            reply = await self._gateway.perform(command, sections)
        except Refused as refused:
            reply = refused.reply
        return reply if isinstance(reply, bytes) else bson.encode(reply)


class Login:
    """The server's side of SCRAM-SHA-256 (RFC 7677), for one user of any name."""

    def __init__(self, password: str) -> None:
        self.is_done = False
        self._salt = os.urandom(16)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), self._salt, _ITERATIONS)
        self._stored = hashlib.sha256(_signed(salted, b"Client Key")).digest()
        self._server_key = _signed(salted, b"Server Key")
        self._said = ""
        self._nonce = ""

    def step(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        if "saslStart" in command and command["mechanism"] != "SCRAM-SHA-256":
            raise Refused(334, "MechanismUnavailable", "SCRAM-SHA-256 only")
        said = bytes(command["payload"]).decode()
        fields = dict(part.split("=", 1) for part in said.removeprefix("n,,").split(","))
        if "saslStart" in command:
            self._nonce = fields["r"] + base64.b64encode(os.urandom(18)).decode()
            answer = f"r={self._nonce},s={base64.b64encode(self._salt).decode()},i={_ITERATIONS}"
            self._said = f"{said.removeprefix('n,,')},{answer}"
            return {"conversationId": 1, "done": False, "payload": answer.encode(), "ok": 1.0}
        if not said:
            return {"conversationId": 1, "done": True, "payload": b"", "ok": 1.0}
        agreed = f"{self._said},{said.rpartition(',p=')[0]}".encode()
        mask = _signed(self._stored, agreed)
        proof = base64.b64decode(fields["p"])
        key = bytes(a ^ b for a, b in zip(proof, mask, strict=True))
        if hashlib.sha256(key).digest() != self._stored or fields["r"] != self._nonce:
            raise Refused(18, "AuthenticationFailed", "Authentication failed.")
        self.is_done = True
        answer = f"v={base64.b64encode(_signed(self._server_key, agreed)).decode()}"
        return {"conversationId": 1, "done": True, "payload": answer.encode(), "ok": 1.0}


def _signed(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _session_of(asked: Mapping[str, Any]) -> bytes:
    """The session that a command names. MongoDB gives no more of a cursor than its own session asks for."""
    return bytes(asked["lsid"].raw) if "lsid" in asked else b""


def _length(body: bytes, start: int) -> int:
    return int(struct.unpack_from("<i", body, start)[0])


def _parted(body: bytes, end: int) -> tuple[bytes, bytes]:
    """The command of a message, and the documents that stand beside it."""
    command, sections, place = b"", b"", 4
    while place < end:
        kind, size = body[place], _length(body, place + 1)
        section = body[place + 1 : place + 1 + size]
        if kind == 0:
            command = section
        else:
            sections += section[section.index(0, 4) + 1 :]
        place += 1 + size
    return command, sections


async def _value(
    connection: Any, column: str, function: str, database: str, command: bytes, more: str = ""
) -> bytes:
    source = f"{function}($1, $2::bytea::documentdb_core.bson{more})"
    if column == "t":
        source += " AS t(t)"
    return bytes(await connection.fetchval(f"SELECT {column}::bytea FROM {source}", database, command))


def _refusal(error: asyncpg.PostgresError) -> Refused:
    state = error.sqlstate or ""
    # Of the classes "connection exception" and "operator intervention", but for a query that was cancelled.
    is_away = state.startswith("08") or (state.startswith("57") and state != "57014")
    code = (91, "ShutdownInProgress") if is_away else _CODES.get(state)
    if code is None:
        code = (11000, "DuplicateKey") if "duplicate key" in str(error).lower() else (1, "InternalError")
    return Refused(*code, f"{error.sqlstate}: {error}")


def _with_codes(reply: bytes) -> bytes | Mapping[str, Any]:
    """*reply* with MongoDB's codes of errors in the place of PostgreSQL's."""
    if b"writeErrors\0" not in reply:
        return reply
    read = bson.decode(reply)
    for error in read["writeErrors"]:
        if error["code"] >= 1 << 20:
            state = "".join(chr((error["code"] >> 6 * place & 63) + 48) for place in range(5))
            error["code"] = _CODES.get(state, (1, ""))[0]
    return read


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--password")
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    options = parser.parse_args()
    gateway = Gateway(options.engine, options.password)
    await gateway.open()
    secured = None
    if options.certificate:
        secured = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        secured.load_cert_chain(options.certificate, options.key)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Client(gateway, reader, writer).serve()

    server = await asyncio.start_server(accept, "127.0.0.1", options.port, ssl=secured)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
