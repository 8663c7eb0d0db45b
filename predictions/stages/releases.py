"""List all releases; find and remove old releases and what interrupted runs left behind."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from loader.checkpoints import forget_loads
from predictions.formats.names import is_release_id, release_table, release_time
from predictions.hbase.connection import Connection
from predictions.hbase.releases import BUILDING, DROPPED, NOT_LOADED, Known, Listed, Releases, listed
from predictions.settings import Settings
from predictions.storage import Storage


def list_releases(settings: Settings, storage: Storage) -> list[Listed]:
    """Return all releases that are in HBase or in the storage, newest first.

    Raises:
        ServiceError: HBase or HDFS cannot be reached.
    """
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        in_hbase, pointer = releases.known(), releases.pointer()
    stored = set(storage.releases())
    listing = []
    for release in sorted(in_hbase.keys() | stored, reverse=True):
        entry = in_hbase.get(release, Known(NOT_LOADED, None, None))
        if entry.manifest is None and release in stored:
            entry = entry._replace(manifest=storage.release(release).manifest)
        size = storage.size(release) if release in stored else 0
        listing.append(listed(release, pointer, entry, size))
    return listing


class Leftover(NamedTuple):
    """What is left of a release and can be removed.

    Args:
        release: its ID.
        known: whether HBase lists it as a release that was not dropped.
        table: whether it has a table in HBase.
        paths: its files and folders in the storage.
        why: the reason why it is not needed.
    """

    release: str
    known: bool
    table: bool
    paths: tuple[str, ...]
    why: str


def leftovers(settings: Settings, storage: Storage, connection: Connection) -> list[Leftover]:
    """Return what `remove` would remove, oldest first.

    These are, if older than the grace period: releases beyond the number of newest ones to keep, except the served
    release and the one that a rollback would go to; releases that were started but never loaded; and temporary files.

    Args:
        settings: how many releases to keep, and the grace period of the others.
        storage: where the releases' files are.
        connection: to HBase.
    """
    releases = Releases(connection, settings.name)
    states = {release: entry.state for release, entry in releases.known().items()}
    pointer = releases.pointer() if states else None
    served = {pointer.current, pointer.previous} if pointer else set()
    tables = {name.decode().partition(".")[2] for name in connection.tables() if _belongs(name.decode(), settings.name)}
    folders = set(filter(is_release_id, storage.names(storage.folder)))
    complete = [release for release, state in states.items() if state not in (BUILDING, DROPPED)]
    kept = served | set(sorted(complete)[-settings.retention.keep :])
    until = datetime.now(UTC) - timedelta(hours=settings.retention.grace_hours)
    removable = []
    entered = {release for release, state in states.items() if state != DROPPED}
    for release in sorted(tables | folders | entered):
        state = states.get(release)
        if release in kept:
            paths = tuple(storage.temporaries(release, until))
            if paths:
                removable.append(Leftover(release, False, False, paths, "temporary files of an interrupted run"))
        elif release_time(release) < until:
            paths = (f"{storage.folder}/{release}",) if release in folders else ()
            why = _why(state, settings.retention.keep)
            removable.append(Leftover(release, release in entered, release in tables, paths, why))
    return removable


def _belongs(table: str, name: str) -> bool:
    prefix, _dot, release = table.partition(".")
    return prefix == name and is_release_id(release)


def _why(state: str | None, keep: int) -> str:
    if state in (None, BUILDING):
        return "it was started but never loaded"
    if state == DROPPED:
        return "it was dropped, but not completely removed"
    return f"{keep} newer releases are kept"


def remove(
    settings: Settings, storage: Storage, connection: Connection, removable: list[Leftover]
) -> Iterator[Leftover]:
    """Remove what `leftovers` returned, and yield each once it is gone.

    If this is interrupted, `leftovers` finds the rest again.
    """
    releases = Releases(connection, settings.name)
    for leftover in removable:
        if leftover.known:
            releases.drop(leftover.release)  # first: from now on it cannot be activated
            forget_loads(connection, settings.name, leftover.release)
        if leftover.table:
            connection.delete_table(release_table(settings.name, leftover.release))
        for path in leftover.paths:
            storage.delete(path)
        yield leftover
