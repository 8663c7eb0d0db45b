"""Load: a release's prediction lines into a table of its own, and the proof that all of them are there."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import xxhash

from loader.bulk import HFileLoad, can_load
from loader.checkpoints import Checkpoint, Checkpoints
from loader.plan import Plan
from loader.puts import PutLoad
from loader.tables import make_table
from predictions.errors import InputError, VerificationError
from predictions.formats.hfile.region_file import RegionFacts
from predictions.formats.manifest import Loaded, Manifest, Part, Scored, mismatches
from predictions.formats.names import PACKED, part_name, release_table
from predictions.hbase.connection import Connection
from predictions.hbase.releases import LOADED, REFUSED, Releases
from predictions.progress import Bar
from predictions.settings import Settings
from predictions.stages.verify import verify_table
from predictions.storage import ReleaseFolder
from predictions.workers import cores


@dataclass(frozen=True)
class How:
    """How to load.

    Args:
        via: `hfiles`, which HBase takes over as they are, or `puts`, row by row; by default the former where it can be.
        runner: of puts: `local`, processes of this machine (the default), or `hadoop`, a job.
        processes: how many at once; by default as many as there are cores, or all tasks of the job.
        rate: of puts: rows a second of all of them together; None for as many as they can.
    """

    via: str | None = None
    runner: str | None = None
    processes: int | None = None
    rate: float | None = None

    def at_once(self, parts: int) -> int:
        """Return how many of so many parts are loaded at once."""
        return min(self.processes or (parts if self.runner == "hadoop" else cores()), parts)


class Loader(Protocol):
    """One way to get a release into its table."""

    def load(
        self, connection: Connection, plan: Plan, rows: int, bar: Bar, say: Callable[[str], None]
    ) -> Sequence[Checkpoint | RegionFacts]:
        """Load what is not loaded yet, and return of each region how many rows it then has, and their ID digest."""


def make_loader(settings: Settings, folder: ReleaseFolder, how: How, parts: int) -> Loader:
    """Return a loader; by default that of HFiles, where HBase can be handed them and nothing asks for puts.

    Raises:
        InputError: what it needs is not there.
    """
    for_puts = how.runner is not None or how.rate is not None
    if how.via == "hfiles" and for_puts:
        raise InputError("--runner and --rate are for puts: HFiles are taken over as they are; leave them out")
    if how.via == "hfiles" or (how.via is None and not for_puts and can_load(settings, folder.storage)):
        return HFileLoad(settings, folder, how.at_once(parts))
    in_job = how.runner == "hadoop"
    return PutLoad(settings, folder, in_job, how.processes if in_job else how.at_once(parts))


def load(settings: Settings, folder: ReleaseFolder, how: How, bar: Bar, say: Callable[[str], None]) -> Loaded:
    """Load a release, unless that has been done; nothing that is served changes.

    It goes on where an earlier load of this release ended, whatever ended it.

    Args:
        settings: where HBase is.
        folder: a release that was scored.
        how: to load.
        bar: shows how far it is (`predictions.progress.bar`).
        say: called with a line for a person.

    Returns:
        What was loaded, as the release's manifest has it.

    Raises:
        InputError: the part files are not those of the release's regions.
        RefusedError: HBase refuses rows; the others are loaded.
        ServiceError: HBase cannot be reached.
        VerificationError: the table does not hold what was written.
    """
    scored = folder.scored
    sizes = _check_parts(folder, scored.parts)
    loader = make_loader(settings, folder, how, scored.parts)
    started = time.monotonic()
    with Connection(settings.hbase.server(loading=True)) as connection:
        releases = Releases(connection, settings.name)
        releases.make_table()
        if folder.manifest.loaded and releases.state(folder.release) in (LOADED, REFUSED):
            say(f"release {folder.release} is loaded already")
            return folder.manifest.loaded
        releases.claim(folder.release)
        plan = _plan(connection, settings, folder, how, scored, sizes, say)
        done = loader.load(connection, plan, scored.rows, bar, say)
        loaded = Loaded(scored.rows, parts=[Part(part.rows, part.id_digest) for part in done])
        checkpoints = Checkpoints(connection, plan)
        _prove(connection, plan, checkpoints, replace(folder.manifest, loaded=loaded), bar)
        loaded = replace(loaded, seconds=round(time.monotonic() - started, 3))
        folder.write_manifest(replace(folder.manifest, loaded=loaded))
        releases.finish(folder.release, folder.manifest)
        checkpoints.remove_all()
    return loaded


def _check_parts(folder: ReleaseFolder, parts: int) -> dict[str, int]:
    """Return the part files with their sizes; InputError unless each region has one, whole."""
    path, sizes = f"{folder.path}/scored", folder.sizes("scored")
    known = {name: part for part in range(parts) for name in (part_name(part), part_name(part) + PACKED)}
    found = Counter(known[name] for name in sizes if name in known)
    if extra := [name for name in sizes if name not in known or found[known[name]] > 1]:
        raise InputError(f"{path}: {', '.join(extra)}: the release has {parts} parts, and each may stand there once")
    if missing := [part_name(part) for part in range(parts) if part not in found]:
        raise InputError(f"{path}: {', '.join(missing)}: not there; score the release again")
    for name, size in sizes.items():
        # Hadoop gives its tasks the line feed that a file lacks: they could not tell. A packed one shows its own end.
        if not name.endswith(PACKED) and size:
            end = b"".join(folder.blocks(f"{path}/{name}", size - 1, end=b""))
            if end != b"\n":
                raise InputError(f"{path}/{name}: it ends in the middle of a line; score the release again")
    return sizes


def _plan(
    connection: Connection,
    settings: Settings,
    folder: ReleaseFolder,
    how: How,
    scored: Scored,
    sizes: dict[str, int],
    say: Callable[[str], None],
) -> Plan:
    """Return the plan of the load that was begun, or of a new one; the release's table is there after it."""
    releases, release, points = Releases(connection, settings.name), folder.release, scored.split_points
    table = release_table(settings.name, release)
    load_id = releases.load_id(release)
    if load_id is None or table.encode() not in connection.tables():
        load_id = releases.start_load(release)  # first: a table must never have another one's checkpoints
        make_table(connection, table, points, settings.hadoop.bin, say)
    # Nor must other part files, of a release that was scored again.
    parts = xxhash.xxh3_64_hexdigest(json.dumps([points, sizes, str(scored.id_digest)]).encode())
    rate = how.rate / how.at_once(len(points) + 1) if how.rate else None
    return Plan(settings.hbase.server(loading=True), settings.name, release, f"{load_id}-{parts}", points, rate)


def _prove(connection: Connection, plan: Plan, checkpoints: Checkpoints, manifest: Manifest, bar: Bar) -> None:
    """Raise VerificationError, and leave no table, unless what was scored was loaded, and stands in the table."""
    assert manifest.loaded
    lost = list(mismatches(manifest.accounts))
    if not lost:
        with bar("verify", "rows") as progress:
            lost = verify_table(plan, manifest.loaded.parts, None, cores(), progress).mismatches
    if lost:
        for part in range(plan.parts):
            checkpoints.remove(part)  # they were wrong
        connection.delete_table(plan.table)  # a row that is nobody's would stay in it
        raise VerificationError(f"table {plan.table}: {'; '.join(lost)}: load it again, from the start")
