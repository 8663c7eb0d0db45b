"""The predictions that are served: which release is current, and its rows, for a client's lookups."""

import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from predictions.formats.manifest import Manifest
from predictions.formats.names import release_table
from predictions.hbase.connection import GRACE_SECONDS, Connection, RejectedError, Row, Sent
from predictions.hbase.pool import Pool
from predictions.hbase.releases import Releases
from predictions.settings import Settings

POINTER_SECONDS = 0.5  # for which a pointer that was read is taken for the current one
MIN_ROWS = 250  # of a request, where there are others beside it: below that, one alone takes less time


class ServedRelease(NamedTuple):
    """The release that was current at a time, by the monotonic clock; None before any was."""

    release: str | None
    manifest: Manifest | None
    since: float

    @property
    def model(self) -> str:
        """The SHA-256 of the release's model."""
        assert self.manifest
        assert self.manifest.model
        return self.manifest.model.sha256

    @property
    def split_points(self) -> list[str]:
        """The split points between the release's regions."""
        assert self.manifest
        assert self.manifest.scored
        return self.manifest.scored.split_points

    @property
    def is_now(self) -> bool:
        """Whether it can still be taken for the current one."""
        return time.monotonic() < self.since + POINTER_SECONDS


class ServedRows(NamedTuple):
    """Rows of the release that was current when they were asked for, by their row keys."""

    current: ServedRelease
    rows: dict[bytes, Row]


class ReleaseRows:
    """Looks rows of the current release up, for any number of threads.

    Args:
        settings: where HBase is, and the name of the predictions.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        server = settings.hbase.server()
        self.timeout = server.timeout
        self._pool = Pool(lambda: Connection(server))
        self.current: ServedRelease | None = None  # when it was last asked for

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def send(self, keys: Sequence[bytes], lent: ExitStack) -> "RowLookup":
        """Send what is needed to find rows of the current release.

        Args:
            keys: the row keys, each of them once.
            lent: to which connections are lent; to be left when the rows were received.
        """
        return RowLookup(self, sorted(keys), lent)

    def lend(self, lent: ExitStack) -> Connection:
        """Return a connection, which is given back with what else is lent."""
        return lent.enter_context(self._pool.lend())

    def send_pointer(self, connection: Connection) -> Sent:
        """Ask which release is current."""
        return Releases(connection, self.name).send_pointer()

    def receive_pointer(self, connection: Connection, sent: Sent) -> ServedRelease:
        """Return the release that was current when `send_pointer` was asked for it."""
        releases, known = Releases(connection, self.name), self.current
        release = releases.receive_pointer(sent).current
        if known and known.release == release:
            manifest = known.manifest
        else:
            manifest = releases.manifest(release) if release else None
        current = ServedRelease(release, manifest, sent.time)
        if not self.current or self.current.since < sent.time:  # another thread's may be a newer one
            self.current = current
        return current


class RowLookup:
    """A lookup of rows, over as many connections as it has requests at once: begun here, ended by `receive`."""

    def __init__(self, served: ReleaseRows, keys: list[bytes], lent: ExitStack) -> None:
        self._served = served
        self._keys = keys
        self._lent = lent
        self._deadline = time.monotonic() + served.timeout
        self._connections: list[Connection] = []
        self._first = self._lend()
        self._pointer: Sent | None = None
        known = served.current
        if known and known.is_now:
            self._send(known)
        else:
            self._pointer = served.send_pointer(self._first)

    def receive(self) -> ServedRows:
        """Wait for the rows, if need be of a release that became the current one since.

        Raises:
            ServiceError: HBase did not answer in time.
            InputError: the current release's entry is gone.
        """
        if self._pointer:
            # HBase has time, however much of it somebody else has taken since the lookup began.
            self._deadline = max(self._deadline, time.monotonic() + GRACE_SECONDS)
            self._first.deadline = self._deadline
            current = self._served.receive_pointer(self._first, self._pointer)
            self._send(current if current.is_now else self._read())
        while True:
            began, found, refused = time.monotonic(), None, None
            try:
                found = ServedRows(self._current, {row.key: row for row in self._rows()})
            except RejectedError as error:
                refused = error  # its table may be gone
            if found and time.monotonic() < began + POINTER_SECONDS:
                return found
            newer = self._read()
            if newer.release == self._current.release:
                if refused:
                    raise refused
                assert found
                return found
            self._send(newer)

    def _send(self, current: ServedRelease) -> None:
        """Ask for the rows of a release."""
        self._current = current
        self._sent: list[tuple[Connection, Sent]] = []
        if current.release is None or not self._keys:
            return
        table = release_table(self._served.name, current.release)
        groups = _by_region(self._keys, current.split_points)
        for _group in groups[len(self._connections) :]:
            self._lend()
        for connection, group in zip(self._connections, groups, strict=False):
            self._sent.append((connection, connection.send_rows(table, group)))

    def _rows(self) -> list[Row]:
        return [row for connection, sent in self._sent for row in connection.receive(sent)]

    def _read(self) -> ServedRelease:
        return self._served.receive_pointer(self._first, self._served.send_pointer(self._first))

    def _lend(self) -> Connection:
        connection = self._served.lend(self._lent)
        connection.deadline = self._deadline
        self._connections.append(connection)
        return connection


def _by_region(keys: list[bytes], points: list[str]) -> list[list[bytes]]:
    """Return ordered row keys in groups of whole regions, together so large that each is worth a request."""
    groups, start = [], 0
    for point in points:
        end = bisect_left(keys, point.encode())
        if min(end - start, len(keys) - end) >= MIN_ROWS:
            groups.append(keys[start:end])
            start = end
    return [*groups, keys[start:]]
