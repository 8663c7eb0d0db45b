"""The predictions that are served: which release is current, and its rows, for a client's lookups."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from predictions.formats.manifest import Manifest
from predictions.formats.names import release_table
from predictions.hbase.connection import GRACE_SECONDS, Connection, RefusalError, Row
from predictions.hbase.pool import Pool
from predictions.hbase.releases import Releases
from predictions.settings import Settings

POINTER_SECONDS = 0.5  # for which a pointer that was read is taken for the current one
MIN_ROWS = 250  # of a request, where there are others beside it: below that, one alone takes less time


class Current(NamedTuple):
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


class Found(NamedTuple):
    """Rows of the release that was current when they were asked for, by their row keys."""

    current: Current
    rows: dict[bytes, Row]


class Served:
    """Looks rows of the current release up, for any number of threads.

    Args:
        settings: where HBase is, and the name of the predictions.
    """

    def __init__(self, settings: Settings) -> None:
        self._name = settings.name
        server = settings.hbase.server()
        self._timeout = server.timeout
        self._pool = Pool(lambda: Connection(server))
        self._current: Current | None = None

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def ask(self, keys: Sequence[bytes], lent: ExitStack) -> Callable[[], Found]:
        """Send what is needed to find rows of the current release, and return what waits for them.

        Args:
            keys: the row keys, each of them once.
            lent: to which connections are lent; to be left when the rows were waited for.

        Raises (what is returned):
            ServiceError: HBase did not answer in time.
            InputError: the current release's entry is gone.
        """
        lookup = _Lookup(self._name, sorted(keys), self._pool, lent, time.monotonic() + self._timeout)
        known = self._current
        if known and known.is_now:
            rows = lookup.ask(known)
            return lambda: lookup.follow(known, rows, self._read)
        pointer = self._ask_current(lookup.first)

        def read() -> Found:
            lookup.resume()
            current = pointer()
            if not current.is_now:
                current = self._read(lookup.first)
            return lookup.follow(current, lookup.ask(current), self._read)

        return read

    def _read(self, connection: Connection) -> Current:
        return self._ask_current(connection)()

    def _ask_current(self, connection: Connection) -> Callable[[], Current]:
        releases, since, known = Releases(connection, self._name), time.monotonic(), self._current
        pointer = releases.ask_pointer()

        def read() -> Current:
            release = pointer().current
            if known and known.release == release:
                manifest = known.manifest
            else:
                manifest = releases.manifest(release) if release else None
            current = Current(release, manifest, since)
            latest = self._current
            if not latest or latest.since < since:  # another thread's may be a newer one
                self._current = current
            return current

        return read


class _Lookup:
    """One lookup of rows, over as many connections as it has requests at once."""

    def __init__(self, name: str, keys: list[bytes], pool: Pool[Connection], lent: ExitStack, deadline: float) -> None:
        self._name = name
        self._keys = keys
        self._pool = pool
        self._lent = lent
        self._deadline = deadline
        self._connections: list[Connection] = []
        self.first = self._lend()

    def _lend(self) -> Connection:
        connection = self._lent.enter_context(self._pool.lend())
        connection.deadline = self._deadline
        self._connections.append(connection)
        return connection

    def ask(self, current: Current) -> Callable[[], list[Row]]:
        """Send the requests for a release's rows."""
        if current.release is None or not self._keys:
            return list
        table = release_table(self._name, current.release)
        groups = _by_region(self._keys, current.split_points)
        for _group in groups[len(self._connections) :]:
            self._lend()
        replies = [
            connection.ask_rows(table, group) for connection, group in zip(self._connections, groups, strict=False)
        ]
        return lambda: [row for reply in replies for row in reply()]

    def resume(self) -> None:
        """Give HBase time, however much of it somebody else has taken since the lookup began."""
        self._deadline = max(self._deadline, time.monotonic() + GRACE_SECONDS)
        self.first.deadline = self._deadline

    def follow(self, current: Current, rows: Callable[[], list[Row]], read: Callable[[Connection], Current]) -> Found:
        """Wait for the rows; where that took long, or their table is gone, for those of the release that is current."""
        while True:
            began, found, refused = time.monotonic(), None, None
            try:
                found = Found(current, {row.key: row for row in rows()})
            except RefusalError as error:
                refused = error
            if found and time.monotonic() < began + POINTER_SECONDS:
                return found
            newer = read(self.first)
            if newer.release == current.release:
                if refused:
                    raise refused
                assert found
                return found
            current, rows = newer, self.ask(newer)


def _by_region(keys: list[bytes], points: list[str]) -> list[list[bytes]]:
    """Return ordered row keys in groups of whole regions, together so large that each is worth a request."""
    groups, start = [], 0
    for point in points:
        end = bisect_left(keys, point.encode())
        if min(end - start, len(keys) - end) >= MIN_ROWS:
            groups.append(keys[start:end])
            start = end
    return [*groups, keys[start:]]
