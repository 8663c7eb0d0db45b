"""The connection to HBase of loader and client: every request goes through here, HappyBase's hands do the work.

A connection never answers with another request's reply (see `predictions.hbase.transport`), belongs to the thread and
process that made it, gives up within its time, connects anew by itself, and repeats what may be repeated.
"""

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
from predictions.hbase.server import Server
from predictions.hbase.transport import Channel

T = TypeVar("T")
IDLE_SECONDS = 30.0  # the server closes a connection that was idle for 60
ATTEMPT_SECONDS = 60.0  # after which a request is given up and made again, if there is time left
WAIT_SECONDS = 5.0  # the longest time between two attempts
FIRST_WAIT_SECONDS = 0.1
GRACE_SECONDS = 0.5  # for a reply that may have come while whoever asked for it did something else
_KEYS = b"FirstKeyOnlyFilter() AND KeyOnlyFilter()"  # of a row its first cell, of that no value


class RejectedError(ServiceError):
    """HBase answered, and will not do what it was asked however often it is: to repeat the command is no use."""

    exit_code = RefusedError.exit_code

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class Region(NamedTuple):
    """A region of a table: its first row key and the server that has it."""

    start: bytes
    server: str


class Cell(NamedTuple):
    """A cell's value and its timestamp, in milliseconds since 1970."""

    value: bytes
    timestamp: int


class Row(NamedTuple):
    """A row as it was read."""

    key: bytes
    cells: dict[bytes, Cell]


class Connection:
    """A connection to HBase for one thread, which opens with the first request.

    Each request raises ServiceError where HBase could not be had within `server.timeout` seconds, and by `deadline`;
    RejectedError where it refuses; and RuntimeError in another thread or process than that which made or adopted it.

    Args:
        server: the Thrift server.
        waiting: called with the reason each time before a request is made again.
    """

    deadline = float("inf")  # by the monotonic clock, of whatever is requested until another one is set

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
        """Close it; a further request would open it anew."""
        if self._channel:
            self._channel.close()
            self._channel = None

    def adopt(self) -> None:
        """Make the calling thread the one that it belongs to; whose it was must not use it any more."""
        self._owner = os.getpid(), threading.get_ident()

    def forget(self) -> None:
        """Let go of it in a forked process, without a word to the server: it is the parent's."""
        self.close()

    def tables(self) -> set[bytes]:
        """Return the names of all tables."""
        return set(self._request(lambda hbase: hbase.tables()))

    def create_table(self, name: str, family: str) -> None:
        """Make a table with one region and one column family, unless it is there."""

        def create(hbase: happybase.Connection) -> None:
            with suppress(AlreadyExists):  # somebody was faster: another run, or this one's first attempt
                hbase.create_table(name, {family: {}})

        self._request(create)

    def delete_table(self, name: str) -> None:
        """Remove a table, which must be there."""
        self._request(lambda hbase: hbase.delete_table(name, disable=True), repeat=False)

    def regions(self, table: str) -> list[Region]:
        """Return a table's regions in the order of their row keys; none where there is no such table."""
        found = self._request(lambda hbase: hbase.table(table).regions())
        return [Region(region["start_key"], f"{region['server_name'].decode()}:{region['port']}") for region in found]

    def row(self, table: str, key: bytes, columns: Sequence[bytes] | None = None) -> dict[bytes, Cell]:
        """Return a row's cells by their columns; none where there is no such row."""
        found = self._request(lambda hbase: hbase.table(table).row(key, columns=columns, include_timestamp=True))
        return {column: Cell(*cell) for column, cell in found.items()}

    def send_rows(self, table: str, keys: Sequence[bytes], columns: Sequence[bytes] = ()) -> "Sent":
        """Send a request for rows, which `receive` waits for; between the two, this connection has no other one.

        What goes wrong is found, and the request made again, when the rows are waited for; their time counts from here.

        Args:
            table: whose rows.
            keys: the row keys. Rows that are not there are left out.
            columns: columns or families; all by default.
        """
        self._check_owner()
        arguments: dict[str, Any] = {"tableName": table.encode(), "rows": keys, "attributes": {}}
        call = "getRowsWithColumns" if columns else "getRows"
        if columns:
            arguments["columns"] = columns
        started, lost = time.monotonic(), None
        try:
            self._open(started + self._attempt_seconds(started)).client.begin(call, arguments)
        except (OSError, TException) as error:
            lost = error
        return Sent(call, arguments, started, lost)

    def receive(self, sent: "Sent") -> list[Row]:
        """Return the rows that `send_rows` has asked for."""

        def reply() -> Any:
            if sent.lost or not self._channel:
                raise sent.lost or TTransportException()
            deadline = sent.time + self._attempt_seconds(sent.time)
            self._channel.until(max(deadline, time.monotonic() + GRACE_SECONDS))
            return self._channel.client.end(sent.call)

        rows = self._request(
            lambda hbase: getattr(hbase.client, sent.call)(**sent.arguments), first=reply, since=sent.time
        )
        return list(map(_row, rows))

    def put(self, table: str, key: bytes, cells: Mapping[bytes, bytes], timestamp: int | None = None) -> None:
        """Write a row's cells, all or none of them."""
        self._request(lambda hbase: hbase.table(table).put(key, cells, timestamp=timestamp))

    def put_rows(self, table: str, rows: Sequence[tuple[bytes, Mapping[bytes, bytes]]], timestamp: int) -> None:
        """Write rows; given the timestamp, to write them twice equals writing them once.

        Args:
            table: whose rows.
            rows: each row's key and cells.
            timestamp: of all the cells, in milliseconds since 1970.

        Raises:
            RejectedError: HBase refuses one of them, or several; others may have been written.
        """
        # Unset, `isDelete` and `writeToWAL` are what the server takes them for: false and true.
        batch = [
            BatchMutation(key, [Mutation(None, column, value, None) for column, value in cells.items()])
            for key, cells in rows
        ]
        self._request(lambda hbase: hbase.client.mutateRowsTs(table.encode(), batch, timestamp, {}))

    def check_and_put(
        self, table: str, key: bytes, column: bytes, expected: bytes | None, value: bytes, repeat: bool = False
    ) -> bool:
        """Write a cell if it has the expected value, in one step, and return whether it had.

        Args:
            table: the table.
            key: the row's.
            column: the cell's.
            expected: its value, None for no cell.
            value: the new one.
            repeat: whether it may be tried again where the answer was lost. The first one may have been done.
        """
        put = Mutation(column=column, value=value)  # Thrift 1 has this call, HappyBase does not wrap it
        return self._request(
            lambda hbase: hbase.client.checkAndPut(table.encode(), key, column, expected, put, {}), repeat
        )

    def delete_row(self, table: str, key: bytes) -> None:
        """Remove a row, if it is there."""
        self._request(lambda hbase: hbase.client.deleteAllRow(table.encode(), key, {}))

    def scan(
        self, table: str, start: bytes, stop: bytes, columns: Sequence[bytes] = (), page_rows: int = 5_000
    ) -> Iterator[list[Row]]:
        """Yield the rows of a range in order, in pages; where a page is lost, the scan goes on behind the last one.

        Args:
            table: whose rows.
            start: the first row key; empty for the table's first.
            stop: the row key to stop before; empty for the table's end.
            columns: columns or families; all by default.
            page_rows: rows of a page.
        """
        for page in self._pages(table, start, stop, columns, page_rows, None):
            yield list(map(_row, page))

    def keys(
        self, table: str, start: bytes, stop: bytes, columns: Sequence[bytes] = (), page_rows: int = 5_000
    ) -> Iterator[list[bytes]]:
        """Yield the row keys of a range, as `scan` does the rows; no value is sent."""
        for page in self._pages(table, start, stop, columns, page_rows, _KEYS):
            yield [row.row for row in page]

    def _pages(
        self, table: str, start: bytes, stop: bytes, columns: Sequence[bytes], page_rows: int, only: bytes | None
    ) -> Iterator[list[Any]]:
        scanner: tuple[happybase.Connection, int] | None = None

        def page(hbase: happybase.Connection) -> list[Any]:
            nonlocal scanner
            if scanner is None or scanner[0] is not hbase:  # the old one went with its connection
                scan = TScan(
                    startRow=start,
                    stopRow=stop or None,
                    columns=list(columns) or None,
                    caching=page_rows,
                    filterString=only,
                )
                scanner = hbase, hbase.client.scannerOpenWithScan(table.encode(), scan, {})
            return hbase.client.scannerGetList(scanner[1], page_rows)

        while found := self._request(page):
            yield found
            start = found[-1].row + b"\0"
        if scanner and self._channel and self._channel.happybase is scanner[0]:
            with suppress(ServiceError):  # all rows are there, and the server forgets scanners by itself
                self._request(lambda hbase: hbase.client.scannerClose(scanner[1]), repeat=False)

    def _request(
        self,
        request: Callable[[happybase.Connection], T],
        repeat: bool = True,
        first: Callable[[], T] | None = None,
        since: float | None = None,
    ) -> T:
        """Make a request, with a connection that is open, and again where it failed and may be repeated.

        Args:
            request: what to do with a HappyBase connection.
            repeat: whether it may be done twice.
            first: the first attempt, if that is another one.
            since: when that was begun, by the monotonic clock.
        """
        self._check_owner()
        started = time.monotonic() if since is None else since
        deadline = min(started + self._server.timeout, self.deadline)
        # One that is lost leaves time for another, where there may be another.
        attempt_seconds = self._attempt_seconds(started) if repeat else deadline - started
        wait, longest, attempts = FIRST_WAIT_SECONDS, min(WAIT_SECONDS, self._server.timeout / 10), 0
        while True:
            is_sent, attempts = False, attempts + 1
            try:
                if first and attempts == 1:
                    answer = first()
                else:
                    channel = self._open(min(deadline, time.monotonic() + attempt_seconds))
                    is_sent = True
                    answer = request(channel.happybase)
                self._used = time.monotonic()
                return answer
            except (OSError, TException) as error:
                pause = random.uniform(0, min(wait, longest))  # noqa: S311, so that clients do not come all at once
                may_repeat = may_pass(error) and (repeat or not is_sent)
                # A pause that would not fit is the end: short ones let no patience go unused.
                if not may_repeat or time.monotonic() + pause >= deadline:
                    raise self._error(error, attempts) from error
                self._waiting(reason_of(error))
            time.sleep(pause)
            wait = min(2 * wait, longest)

    def _attempt_seconds(self, started: float) -> float:
        timeout = min(self._server.timeout, self.deadline - started)
        return min(ATTEMPT_SECONDS, timeout / 2)

    def _check_owner(self) -> None:
        if self._owner != (os.getpid(), threading.get_ident()):
            raise RuntimeError("a connection belongs to the thread and the process that made it: open one here")

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
                return ServiceError(f"HBase's Thrift server at {server.address}: {reason}; is hbase.thrift right?")
            return RejectedError(f"HBase refuses, through the Thrift server at {server.address}: {reason}", reason)
        tries = f"tried {attempts} times in " if attempts > 1 else "waited "
        return ServiceError(
            f"HBase's Thrift server at {server.address}: {reason}; {tries}{server.timeout:g} s at most "
            f"({server.timeout_setting}); is it running (hadoop/cluster status), and are hbase.thrift, transport, "
            "protocol and tls right?"
        )


class Sent(NamedTuple):
    """A request for rows that `Connection.send_rows` has sent, unless it was lost on its way."""

    call: str
    arguments: dict[str, Any]
    time: float  # by the monotonic clock
    lost: Exception | None


def _row(found: Any) -> Row:
    return Row(found.row, {column: Cell(cell.value, cell.timestamp) for column, cell in found.columns.items()})
