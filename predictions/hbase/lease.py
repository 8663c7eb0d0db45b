"""Allow one run at a time for a name: a lease in HBase, which the run renews as long as it is alive.

Table NAME, row `run`, cell `r:run`: JSON with the run that holds the lease and the number of renewals, `{}` if it is
free. It changes only by a check-and-put against the bytes that were read. A run is seen to be alive because its cell
changes: clocks are not compared, and no process on another machine is queried. Safety does not depend on the lease: two
runs at once would make two releases, and of two activations at once, one fails.
"""

import json
import logging
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

logger = logging.getLogger(__name__)

RENEW_SECONDS = 2.0
SILENT_SECONDS = 10.0  # a run without a renewal for that long counts as dead

_ROW, _CELL = b"run", f"{FAMILY}:run".encode()
_FREE: dict[str, Any] = {}


@contextmanager
def lease(server: Server, name: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease of a name.

    Args:
        server: HBase's Thrift server.
        name: name of the predictions.
        report: called with a line of text if another run holds the lease and may be dead.

    Raises:
        RefusedError: another run holds the lease and is alive.
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
    value = _read(connection, name)
    if holder := _decode(value):
        message = f"{_describe(holder)} holds the lease; waiting {SILENT_SECONDS:g} s to see whether it is alive"
        logger.info("%s: %s", name, message)
        report(message)
        deadline = time.monotonic() + SILENT_SECONDS
        while (new_value := _read(connection, name)) == value and time.monotonic() < deadline:
            time.sleep(RENEW_SECONDS / 4)
        if new_value != value and (holder := _decode(new_value)):
            raise RefusedError(f"{name}: {_describe(holder)} is active; wait until it ends")
        value = new_value
    if not connection.check_and_put(name, _ROW, _CELL, value, to_cell(mine | {"renewed": 0})):
        raise RefusedError(f"{name}: another run started just now; wait until it ends")


def _renew(server: Server, name: str, mine: dict[str, Any], ended: threading.Event) -> None:
    """Renew the lease until the run ends, then free it; stop if another run has taken it."""
    renewals = 0
    with Connection(server) as connection:
        while not ended.wait(RENEW_SECONDS):
            renewals += 1
            try:
                if not _replace(connection, name, mine, mine | {"renewed": renewals}):
                    logger.info("%s: another run has taken the lease; this run no longer renews it", name)
                    return
            except PredictionsError as error:
                # Go on: while HBase does not answer, another run cannot take the lease either.
                logger.info("%s: the lease was not renewed: %s; trying again in %g s", name, error, RENEW_SECONDS)
        with suppress(PredictionsError):
            _replace(connection, name, mine, _FREE)


def _replace(connection: Connection, name: str, mine: dict[str, Any], new: dict[str, Any]) -> bool:
    """Replace the lease; return whether this run still held it."""
    value = _read(connection, name)
    is_mine = _decode(value).get("run") == mine["run"]
    return is_mine and connection.check_and_put(name, _ROW, _CELL, value, to_cell(new))


def _read(connection: Connection, name: str) -> bytes | None:
    cell = connection.row(name, _ROW, [_CELL]).get(_CELL)
    return cell.value if cell else None


def _describe(holder: dict[str, Any]) -> str:
    return f"another run (process {holder['pid']} on {holder['host']}, started at {holder['since']})"


def _decode(value: bytes | None) -> dict[str, Any]:
    return json.loads(value) if value else _FREE
