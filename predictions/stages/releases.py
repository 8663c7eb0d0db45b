"""All releases: what each holds, which have had their time, what crashes left behind, and the removal of both."""

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
    """Return all releases that are in HBase or in the storage, the newest first.

    Raises:
        ServiceError: HBase or HDFS cannot be reached.
    """
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        known, pointer = releases.known(), releases.pointer()
    stored = set(storage.releases())
    found = []
    for release in sorted(known.keys() | stored, reverse=True):
        each = known.get(release, Known(NOT_LOADED, None, None))
        if each.manifest is None and release in stored:
            each = each._replace(manifest=storage.release(release).manifest)
        size = storage.size(release) if release in stored else 0
        found.append(listed(release, pointer, each, size))
    return found


class Leftover(NamedTuple):
    """Something that is to be removed.

    Args:
        release: which it belongs to.
        known: whether HBase has it among the releases that were not dropped.
        table: whether it has a table there.
        paths: in the storage.
        why: it is not needed.
    """

    release: str
    known: bool
    table: bool
    paths: tuple[str, ...]
    why: str


def leftovers(settings: Settings, storage: Storage, connection: Connection) -> list[Leftover]:
    """Return what `remove` would remove, oldest first.

    That is, all of it older than the grace period: releases beyond the newest ones that are kept, but for the current
    one and the one that a rollback would make current; releases that were begun and never loaded; and temporary files.

    Args:
        settings: how many releases are kept, and for how long the others.
        storage: where the releases' files are.
        connection: to HBase.
    """
    releases = Releases(connection, settings.name)
    states = {release: known.state for release, known in releases.known().items()}
    pointer = releases.pointer() if states else None
    served = {pointer.current, pointer.previous} if pointer else set()
    tables = {name.decode().partition(".")[2] for name in connection.tables() if _belongs(name.decode(), settings.name)}
    folders = set(filter(is_release_id, storage.names(storage.folder)))
    whole = [release for release, state in states.items() if state not in (BUILDING, DROPPED)]
    kept = served | set(sorted(whole)[-settings.retention.keep :])
    until = datetime.now(UTC) - timedelta(hours=settings.retention.grace_hours)
    found = []
    known = {release for release, state in states.items() if state != DROPPED}
    for release in sorted(tables | folders | known):
        state = states.get(release)
        if release in kept:
            paths = tuple(storage.temporaries(release, until))
            if paths:
                found.append(Leftover(release, False, False, paths, "temporary files of a run that was ended"))
        elif release_time(release) < until:
            paths = (f"{storage.folder}/{release}",) if release in folders else ()
            why = _why(state, settings.retention.keep)
            found.append(Leftover(release, release in known, release in tables, paths, why))
    return found


def _belongs(table: str, name: str) -> bool:
    before, _dot, release = table.partition(".")
    return before == name and is_release_id(release)


def _why(state: str | None, keep: int) -> str:
    if state in (None, BUILDING):
        return "it was begun and never loaded"
    if state == DROPPED:
        return "it was dropped, but not all of it"
    return f"{keep} newer ones are kept"


def remove(settings: Settings, storage: Storage, connection: Connection, found: list[Leftover]) -> Iterator[Leftover]:
    """Remove what `leftovers` found, and yield each when it is gone; ended in the middle, the rest is found again."""
    releases = Releases(connection, settings.name)
    for leftover in found:
        if leftover.known:
            releases.drop(leftover.release)  # first: nobody can make it current any more
            forget_loads(connection, settings.name, leftover.release)
        if leftover.table:
            connection.delete_table(release_table(settings.name, leftover.release))
        for path in leftover.paths:
            storage.delete(path)
        yield leftover
