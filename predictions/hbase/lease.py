"""One run at a time for a name: a lease in HBase, which a run renews for as long as it lives.

Table NAME, row `run`, cell `r:run`: JSON of who holds it and how often it was renewed, `{}` where nobody does. It
changes only by a check-and-put against the bytes that were read. That a holder is alive is seen by its cell changing:
no clocks are compared, no process of another machine is asked for. Nothing relies on the lease for safety: two runs at
once would make two releases, and of two switches one is told.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from predictions.errors import PredictionsError, RefusedError
from predictions.formats.document import to_cell
from predictions.hbase.connection import Connection
from predictions.hbase.releases import FAMILY, Releases
from predictions.hbase.server import Server

RENEW_SECONDS = 2.0
SILENT_SECONDS = 10.0  # without a renewal, after which a holder is taken for dead

_ROW, _CELL = b"run", f"{FAMILY}:run".encode()
_FREE: dict[str, Any] = {}


@contextmanager
def lease(server: Server, name: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease of a name.

    Args:
        server: HBase's Thrift server.
        name: of the predictions.
        report: called with a line of text where another run holds it that may be dead.

    Raises:
        RefusedError: another run holds it, and is alive.
        ServiceError: HBase cannot be reached.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
    with Connection(server) as connection:
        Releases(connection, name).make_table()
        _take(connection, name, mine, report)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(server, name, mine, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()


def _take(connection: Connection, name: str, mine: dict[str, Any], report: Callable[[str], None]) -> None:
    read = _read(connection, name)
    if holder := _decode(read):
        report(f"{_describe(holder)} has not ended; whether it is alive shows within {SILENT_SECONDS:g} s")
        deadline = time.monotonic() + SILENT_SECONDS
        while (now := _read(connection, name)) == read and time.monotonic() < deadline:
            time.sleep(RENEW_SECONDS / 4)
        if now != read and (holder := _decode(now)):
            raise RefusedError(f"{name}: {_describe(holder)} is under way; wait for its end")
        read = now
    if not connection.check_and_put(name, _ROW, _CELL, read, to_cell(mine | {"renewed": 0})):
        raise RefusedError(f"{name}: another run began just now; wait for its end")


def _renew(server: Server, name: str, mine: dict[str, Any], ended: threading.Event) -> None:
    """Show that this run is alive until it ends, and free the lease then; stop where another run has taken it."""
    count = 0
    with Connection(server) as connection:
        while not ended.wait(RENEW_SECONDS):
            count += 1
            # Where HBase does not answer, it does not answer another run either.
            with suppress(PredictionsError):
                if not _replace(connection, name, mine, mine | {"renewed": count}):
                    return
        with suppress(PredictionsError):
            _replace(connection, name, mine, _FREE)


def _replace(connection: Connection, name: str, mine: dict[str, Any], new: dict[str, Any]) -> bool:
    """Replace the lease and return whether it was still this run's."""
    read = _read(connection, name)
    is_mine = _decode(read).get("run") == mine["run"]
    return is_mine and connection.check_and_put(name, _ROW, _CELL, read, to_cell(new))


def _read(connection: Connection, name: str) -> bytes | None:
    cell = connection.row(name, _ROW, [_CELL]).get(_CELL)
    return cell.value if cell else None


def _describe(holder: dict[str, Any]) -> str:
    return f"a run by process {holder['pid']} of {holder['host']}, begun at {holder['since']},"


def _decode(value: bytes | None) -> dict[str, Any]:
    return json.loads(value) if value else _FREE
