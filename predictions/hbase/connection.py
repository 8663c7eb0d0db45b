"""All HBase requests of the loader and the client go through `Connection`, on top of HappyBase.

A connection never returns the reply to another request (see `predictions.hbase.transport`), belongs to one thread of
one process, keeps its time limit, reconnects when it was cut, and repeats the requests that may be repeated.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self, TypeVar

import happybase
from Hbase_thrift import AlreadyExists, BatchMutation, Mutation, TScan
from thriftpy2.thrift import TException
from thriftpy2.transport import TTransportException

from predictions.errors import RefusedError, ServiceError
from predictions.hbase.reasons import may_pass, reason_of
from predictions.hbase.rows import Cell, Row
from predictions.hbase.server import Server
from predictions.hbase.transport import Channel

logger = logging.getLogger(__name__)

T = TypeVar("T")
IDLE_SECONDS = 30.0  # reconnect after that: the server closes a connection that was idle for 60 s
ATTEMPT_SECONDS = 60.0  # limit of one attempt; then the request is made again, if there is time left
WAIT_SECONDS = 5.0  # longest pause between two attempts
FIRST_WAIT_SECONDS = 0.1
GRACE_SECONDS = 0.5  # for a reply that may have arrived while the caller was doing something else
_KEYS_ONLY = b"FirstKeyOnlyFilter() AND KeyOnlyFilter()"  # the first cell of each row, without its value


class RejectedError(ServiceError):
    """HBase answered and refused the request; it would refuse it again, so repeating the command does not help."""

    exit_code = RefusedError.exit_code

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class Region(NamedTuple):
    """A region of a table.

    Args:
        start: its first row key.
        server: `HOST:PORT` of the server that has it.
        name: its name: table, first row key, time and, between dots, the encoded name.
    """

    start: bytes
    server: str
    name: bytes

    @property
    def encoded_name(self) -> str:
        """The name of its folder on HDFS."""
        return self.name.rstrip(b".").rpartition(b".")[2].decode()


class Connection:
    """A connection to HBase for one thread; the first request opens it.

    Each request raises ServiceError if HBase does not answer within `server.timeout` seconds or by `deadline`;
    RejectedError if HBase refuses it; and RuntimeError outside the thread and process that made or adopted the
    connection.

    Args:
        server: the Thrift server.
        waiting: called with the reason before each repetition of a request, which is also logged.
    """

    deadline = float("inf")  # by the monotonic clock, for all requests until it is set anew

    def __init__(self, server: Server, waiting: Callable[[str], None] = lambda _reason: None) -> None:
        self._server = server
        self._waiting = waiting
        self._channel: Channel | None = None
        self._used = 0.0
        self.adopt()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the next request opens it again."""
        if self._channel:
            self._channel.close()
            self._channel = None

    def adopt(self) -> None:
        """Hand the connection over to the calling thread; the previous owner must not use it again."""
        self._owner = os.getpid(), threading.get_ident()

    def forget(self) -> None:
        """Drop it in a forked process without telling the server: it belongs to the parent process."""
        self.close()

    def tables(self) -> set[bytes]:
        """Return the names of all tables."""
        return set(self._request(lambda hbase: hbase.tables()))

    def create_table(self, name: str, family: str) -> None:
        """Make a table with one region and one column family, unless it exists."""

        def create(hbase: happybase.Connection) -> None:
            with suppress(AlreadyExists):  # made by another run, or by the first attempt of this one
                hbase.create_table(name, {family: {"block_cache_enabled": True}})  # Thrift's default is false

        self._request(create)

    def delete_table(self, name: str) -> None:
        """Remove a table, which must exist."""
        self._request(lambda hbase: hbase.delete_table(name, disable=True), repeat=False)

    def regions(self, table: str) -> list[Region]:
        """Return a table's regions in the order of their row keys; an empty list if there is no such table."""
        regions = self._request(lambda hbase: hbase.table(table).regions())
        return [
            Region(region["start_key"], f"{region['server_name'].decode()}:{region['port']}", region["name"])
            for region in regions
        ]

    def row(self, table: str, key: bytes, columns: Sequence[bytes] = ()) -> dict[bytes, Cell]:
        """Return a row's cells by column; an empty dictionary if there is no such row."""
        call, arguments = _get_rows(table, [key], columns)
        rows = self._request(lambda hbase: getattr(hbase.client, call)(**arguments))
        return rows[0].cells if rows else {}

    def send_rows(self, table: str, keys: Sequence[bytes], columns: Sequence[bytes] = ()) -> "Sent":
        """Send a request for rows, and let `receive` wait for them; the connection takes no other request in between.

        Errors show in `receive`, which makes the request again; its time limit starts here.

        Args:
            table: the table's name.
            keys: the row keys. Rows that do not exist are left out.
            columns: columns or families; all by default.
        """
        self._check_owner()
        call, arguments = _get_rows(table, keys, columns)
        started, send_error = time.monotonic(), None
        try:
            self._open(started + self._attempt_seconds(started)).client.begin(call, arguments)
        except (OSError, TException) as error:
            send_error = error
        return Sent(call, arguments, started, send_error)

    def receive(self, sent: "Sent") -> list[Row]:
        """Wait for the rows that `send_rows` requested, and return them."""

        def receive_reply() -> list[Row]:
            if sent.error or not self._channel:
                raise sent.error or TTransportException()
            deadline = sent.time + self._attempt_seconds(sent.time)
            self._channel.until(max(deadline, time.monotonic() + GRACE_SECONDS))
            return self._channel.client.end(sent.call)

        return self._request(
            lambda hbase: getattr(hbase.client, sent.call)(**sent.arguments),
            first_attempt=receive_reply,
            started=sent.time,
        )

    def put(self, table: str, key: bytes, cells: Mapping[bytes, bytes], timestamp: int | None = None) -> None:
        """Write a row's cells, all of them or none."""
        self._request(lambda hbase: hbase.table(table).put(key, cells, timestamp=timestamp))

    def put_rows(self, table: str, rows: Sequence[tuple[bytes, Mapping[bytes, bytes]]], timestamp: int) -> None:
        """Write rows; since the timestamp is given, writing them twice has the same effect as writing them once.

        Args:
            table: the table's name.
            rows: each row's key and cells.
            timestamp: timestamp of all cells, in milliseconds since 1970.

        Raises:
            RejectedError: HBase refuses at least one of the rows; others may have been written.
        """
        # `isDelete` and `writeToWAL` stay unset: the server's defaults are false and true.
        batch = [
            BatchMutation(key, [Mutation(None, column, value, None) for column, value in cells.items()])
            for key, cells in rows
        ]
        self._request(lambda hbase: hbase.client.mutateRowsTs(table.encode(), batch, timestamp, {}))

    def check_and_put(
        self, table: str, key: bytes, column: bytes, expected: bytes | None, value: bytes, repeat: bool = False
    ) -> bool:
        """Write a cell if it has the expected value, in one atomic step, and return whether it was written.

        Args:
            table: the table's name.
            key: the row key.
            column: the cell's column.
            expected: the value that the cell must have; None if there must be no cell.
            value: the new value.
            repeat: whether to try again if the answer was lost. The first attempt may have succeeded.
        """
        put = Mutation(column=column, value=value)  # HappyBase does not wrap this call of Thrift 1
        return self._request(
            lambda hbase: hbase.client.checkAndPut(table.encode(), key, column, expected, put, {}), repeat
        )

    def delete_row(self, table: str, key: bytes) -> None:
        """Remove a row, if it exists."""
        self._request(lambda hbase: hbase.client.deleteAllRow(table.encode(), key, {}))

    def scan(
        self, table: str, start: bytes, stop: bytes, columns: Sequence[bytes] = (), page_rows: int = 5_000
    ) -> Iterator[list[Row]]:
        """Yield the rows of a range in order, in pages; after a lost page, the scan resumes behind the last row read.

        Args:
            table: the table's name.
            start: the first row key; empty for the start of the table.
            stop: the row key to stop before; an empty key means no limit.
            columns: columns or families; all by default.
            page_rows: number of rows in a page.
        """
        yield from self._pages(table, start, stop, columns, page_rows, None)

    def keys(
        self, table: str, start: bytes, stop: bytes, columns: Sequence[bytes] = (), page_rows: int = 5_000
    ) -> Iterator[list[bytes]]:
        """Yield the row keys of a range, in pages as `scan` does; the server sends no values."""
        for page in self._pages(table, start, stop, columns, page_rows, _KEYS_ONLY):
            yield [row.key for row in page]

    def _pages(
        self, table: str, start: bytes, stop: bytes, columns: Sequence[bytes], page_rows: int, row_filter: bytes | None
    ) -> Iterator[list[Row]]:
        scanner: tuple[happybase.Connection, int] | None = None

        def next_page(hbase: happybase.Connection) -> list[Row]:
            nonlocal scanner
            if scanner is None or scanner[0] is not hbase:  # a scanner ends with its connection
                scan = TScan(
                    startRow=start,
                    stopRow=stop or None,
                    columns=list(columns) or None,
                    caching=page_rows,
                    filterString=row_filter,
                )
                scanner = hbase, hbase.client.scannerOpenWithScan(table.encode(), scan, {})
            return hbase.client.scannerGetList(scanner[1], page_rows)

        while page := self._request(next_page):
            yield page
            start = page[-1].key + b"\0"
        if scanner and self._channel and self._channel.happybase is scanner[0]:
            with suppress(ServiceError):  # all rows were read, and the server drops unused scanners anyway
                self._request(lambda hbase: hbase.client.scannerClose(scanner[1]), repeat=False)

    def _request(
        self,
        request: Callable[[happybase.Connection], T],
        repeat: bool = True,
        first_attempt: Callable[[], T] | None = None,
        started: float | None = None,
    ) -> T:
        """Make a request over an open connection; if it fails and may be repeated, make it again.

        Args:
            request: called with the HappyBase connection.
            repeat: whether the request may be made twice.
            first_attempt: called for the first attempt instead of `request`.
            started: when the request was begun, by the monotonic clock; by default now.
        """
        self._check_owner()
        if started is None:
            started = time.monotonic()
        deadline = min(started + self._server.timeout, self.deadline)
        # If the request may be repeated, a lost attempt must leave time for another.
        attempt_seconds = self._attempt_seconds(started) if repeat else deadline - started
        wait, longest, attempts = FIRST_WAIT_SECONDS, min(WAIT_SECONDS, self._server.timeout / 10), 0
        while True:
            is_sent, attempts = False, attempts + 1
            try:
                if first_attempt and attempts == 1:
                    answer = first_attempt()
                else:
                    channel = self._open(min(deadline, time.monotonic() + attempt_seconds))
                    is_sent = True
                    answer = request(channel.happybase)
                self._used = time.monotonic()
                return answer
            except (OSError, TException) as error:
                pause = random.uniform(0, min(wait, longest))  # noqa: S311, so that clients do not all return at once
                may_repeat = may_pass(error) and (repeat or not is_sent)
                # Give up if the pause would pass the deadline; pauses are short, so little of the time goes unused.
                if not may_repeat or time.monotonic() + pause >= deadline:
                    raise self._error(error, attempts) from error
                reason = reason_of(error)
                logger.info("HBase's Thrift server at %s: %s; trying again", self._server.address, reason)
                self._waiting(reason)
            time.sleep(pause)
            wait = min(2 * wait, longest)

    def _attempt_seconds(self, started: float) -> float:
        timeout = min(self._server.timeout, self.deadline - started)
        return min(ATTEMPT_SECONDS, timeout / 2)

    def _check_owner(self) -> None:
        if self._owner != (os.getpid(), threading.get_ident()):
            raise RuntimeError("a connection belongs to the thread and the process that made it; open another one here")

    def _open(self, deadline: float) -> Channel:
        if self._channel and self._channel.is_open and time.monotonic() - self._used > IDLE_SECONDS:
            self.close()
        if not (self._channel and self._channel.is_open):
            self._channel = None
            self._channel = Channel(self._server, deadline)
        self._channel.until(deadline)
        return self._channel

    def _error(self, error: BaseException, attempts: int) -> ServiceError:
        server, reason = self._server, reason_of(error)
        if not may_pass(error):
            if isinstance(error, (OSError, TTransportException)):
                return ServiceError(f"HBase's Thrift server at {server.address}: {reason}; check hbase.thrift")
            return RejectedError(f"HBase refuses the request (Thrift server {server.address}): {reason}", reason)
        tries = f"tried {attempts} times in " if attempts > 1 else "waited "
        return ServiceError(
            f"HBase's Thrift server at {server.address}: {reason}; {tries}{server.timeout:g} s at most "
            f"({server.timeout_setting}); check that it runs (hadoop/cluster status), and check hbase.thrift, "
            "transport, protocol and tls"
        )


class Sent(NamedTuple):
    """A request for rows that `Connection.send_rows` has sent or, if there is an `error`, failed to send."""

    call: str
    arguments: dict[str, Any]
    time: float  # by the monotonic clock
    error: Exception | None


def _get_rows(table: str, keys: Sequence[bytes], columns: Sequence[bytes]) -> tuple[str, dict[str, Any]]:
    """Return the call for rows, and its arguments."""
    arguments: dict[str, Any] = {"tableName": table.encode(), "rows": keys, "attributes": {}}
    return ("getRowsWithColumns", {**arguments, "columns": columns}) if columns else ("getRows", arguments)
