"""Look up rows of the served release."""

import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from predictions.formats.manifest import Manifest
from predictions.formats.names import release_table
from predictions.hbase.connection import GRACE_SECONDS, Connection, RejectedError, Sent
from predictions.hbase.pool import Pool
from predictions.hbase.releases import Releases
from predictions.hbase.rows import Row
from predictions.lookup.labels import LabelCells
from predictions.settings import Settings

POINTER_SECONDS = 0.5  # a pointer is used for that long before it is read again
MIN_ROWS = 250  # a lookup is split into parallel requests of at least that many rows; below, one request is faster


@dataclass(frozen=True)
class ServedRelease:
    """The served release, None before the first activation, and the time at which its pointer was requested."""

    release: str | None
    manifest: Manifest | None
    requested: float  # by the monotonic clock

    @cached_property
    def model(self) -> str:
        """The SHA-256 of the release's models, as `ReleaseModels.sha256`."""
        return ",".join(label.model for label in self.labels)

    @cached_property
    def labels(self) -> list[LabelCells]:
        """The release's labels."""
        assert self.manifest
        return [LabelCells(self.manifest.columns, predicted) for predicted in self.manifest.predicted]

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The columns that the release's models predict from; none before the first activation."""
        return tuple(column.name for column in self.manifest.features) if self.manifest else ()

    @property
    def split_points(self) -> list[str]:
        """The split points between the release's regions."""
        assert self.manifest
        assert self.manifest.scored
        return self.manifest.scored.split_points

    @property
    def is_recent(self) -> bool:
        """Whether the pointer was read so recently that it need not be read again."""
        return time.monotonic() < self.requested + POINTER_SECONDS


class ServedRows(NamedTuple):
    """Rows by row key, and the release that they were read from."""

    served: ServedRelease
    rows: dict[bytes, Row]


class ReleaseRows:
    """Look up rows of the served release, from any number of threads.

    Args:
        settings: the settings, for HBase and the name of the predictions.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        server = settings.hbase.server()
        self.timeout = server.timeout
        self._pool = Pool(lambda: Connection(server))
        self.served: ServedRelease | None = None  # as last read, by any thread

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def send(self, keys: Sequence[bytes], loans: ExitStack) -> "RowLookup":
        """Send the first requests of a lookup in the served release.

        Args:
            keys: the row keys, each once.
            loans: gives the connections back to the pool; the caller leaves it once the rows are received.
        """
        return RowLookup(self, sorted(keys), loans)

    def lend(self, loans: ExitStack) -> Connection:
        """Return a connection of the pool, which `loans` gives back."""
        return loans.enter_context(self._pool.lend())

    def send_pointer(self, connection: Connection) -> Sent:
        """Send the request for the pointer."""
        return Releases(connection, self.name).send_pointer()

    def receive_pointer(self, connection: Connection, sent: Sent) -> ServedRelease:
        """Return the release that was served when `send_pointer` requested the pointer."""
        releases, last = Releases(connection, self.name), self.served
        release = releases.receive_pointer(sent).current
        if last and last.release == release:
            manifest = last.manifest
        else:
            manifest = releases.manifest(release) if release else None
        served = ServedRelease(release, manifest, sent.time)
        if not self.served or self.served.requested < sent.time:  # another thread may have read a newer pointer
            self.served = served
        return served


class RowLookup:
    """A lookup of rows, over one connection for each parallel request; `receive` returns the rows."""

    def __init__(self, release_rows: ReleaseRows, keys: list[bytes], loans: ExitStack) -> None:
        self._release_rows = release_rows
        self._keys = keys
        self._loans = loans
        self._deadline = time.monotonic() + release_rows.timeout
        self._connections: list[Connection] = []
        self._first = self._lend()
        self._pointer: Sent | None = None
        served = release_rows.served
        if served and served.is_recent:
            self._send(served)
        else:
            self._pointer = release_rows.send_pointer(self._first)

    def receive(self) -> ServedRows:
        """Wait for the rows; if another release was activated in the meantime, read them from that one.

        Raises:
            ServiceError: HBase did not answer in time.
            InputError: the served release has no manifest in HBase any more.
        """
        if self._pointer:
            # Leave HBase some time even if the caller has used up the lookup's in between.
            self._deadline = max(self._deadline, time.monotonic() + GRACE_SECONDS)
            self._first.deadline = self._deadline
            served = self._release_rows.receive_pointer(self._first, self._pointer)
            self._send(served if served.is_recent else self._read_pointer())
        while True:
            started, served_rows, rejection = time.monotonic(), None, None
            try:
                served_rows = ServedRows(self._served, {row.key: row for row in self._receive_rows()})
            except RejectedError as error:
                rejection = error  # the release's table may have been dropped
            if served_rows and time.monotonic() < started + POINTER_SECONDS:
                return served_rows
            newer = self._read_pointer()
            if newer.release == self._served.release:
                if rejection:
                    raise rejection
                assert served_rows
                return served_rows
            self._send(newer)

    def _send(self, served: ServedRelease) -> None:
        """Send the requests for the rows of a release."""
        self._served = served
        self._sent: list[tuple[Connection, Sent]] = []
        if served.release is None or not self._keys:
            return
        table = release_table(self._release_rows.name, served.release)
        groups = _by_region(self._keys, served.split_points)
        for _group in groups[len(self._connections) :]:
            self._lend()
        for connection, group in zip(self._connections, groups, strict=False):
            self._sent.append((connection, connection.send_rows(table, group)))

    def _receive_rows(self) -> list[Row]:
        return [row for connection, sent in self._sent for row in connection.receive(sent)]

    def _read_pointer(self) -> ServedRelease:
        return self._release_rows.receive_pointer(self._first, self._release_rows.send_pointer(self._first))

    def _lend(self) -> Connection:
        connection = self._release_rows.lend(self._loans)
        connection.deadline = self._deadline
        self._connections.append(connection)
        return connection


def _by_region(keys: list[bytes], split_points: list[str]) -> list[list[bytes]]:
    """Cut sorted row keys at split points into groups that are each large enough for a request of their own."""
    groups, start = [], 0
    for point in split_points:
        end = bisect_left(keys, point.encode())
        if min(end - start, len(keys) - end) >= MIN_ROWS:
            groups.append(keys[start:end])
            start = end
    return [*groups, keys[start:]]
