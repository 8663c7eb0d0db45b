"""Load a release's prediction lines into its own table, and prove that all of them are there."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import xxhash

from loader.bulk import HFileLoad, can_load
from loader.checkpoints import Checkpoint, Checkpoints
from loader.plan import Plan
from loader.proof import Proof
from loader.puts import PutLoad
from loader.tables import make_table, making_table
from predictions.errors import InputError, PredictionsError, VerificationError
from predictions.formats.hfile.region_file import RegionFacts
from predictions.formats.manifest import Loaded, Part, Scored, mismatches
from predictions.formats.names import PACKED, part_name, release_table
from predictions.formats.prediction_line import FAMILY
from predictions.formats.row_key import split_points
from predictions.hbase.connection import Connection
from predictions.hbase.releases import LOADED, REFUSED, Releases
from predictions.jobs.streaming import find_command
from predictions.progress import Bar
from predictions.settings import Settings
from predictions.stages.verify import verify_table
from predictions.storage import ReleaseFolder
from predictions.workers import cores


@dataclass(frozen=True)
class How:
    """How to load.

    Args:
        via: `hfiles`, which HBase takes over as they are, or `puts`, row by row; `hfiles` by default, if possible.
        runner: for puts: `local`, processes of this machine (the default), or `hadoop`, a job.
        processes: how many parts are loaded at once; by default one a core, or with a job all of them.
        rate: for puts: rows a second of all processes together; None for as many as possible.
    """

    via: str | None = None
    runner: str | None = None
    processes: int | None = None
    rate: float | None = None

    def at_once(self, parts: int) -> int:
        """Return how many parts are loaded at once, of so many in all."""
        return min(self.processes or (parts if self.runner == "hadoop" else cores()), parts)


class Loader(Protocol):
    """A way to load a release into its table."""

    def load(
        self, connection: Connection, plan: Plan, rows: int, bar: Bar, say: Callable[[str], None]
    ) -> Sequence[Checkpoint | RegionFacts]:
        """Load what is not loaded yet, and return for each region the rows that it now has, and their ID digest."""

    def prove(self, plan: Plan, parts: Sequence[Checkpoint | RegionFacts]) -> Proof:
        """Prove by HBase's files, where that is possible, that regions hold what `load` has returned."""


def make_loader(settings: Settings, folder: ReleaseFolder, how: How, parts: int) -> Loader:
    """Return the loader of HFiles or of puts; by default of HFiles, if HBase can load them and no option is for puts.

    Raises:
        InputError: options contradict each other, or a command or file that the loader needs is missing.
    """
    for_puts = how.runner is not None or how.rate is not None
    if how.via == "hfiles" and for_puts:
        raise InputError("--runner and --rate are for puts, but HBase takes HFiles over as they are; leave them out")
    if how.via == "hfiles" or (how.via is None and not for_puts and can_load(settings, folder.storage)):
        return HFileLoad(settings, folder, how.at_once(parts))
    in_job = how.runner == "hadoop"
    return PutLoad(settings, folder, in_job, how.processes if in_job else how.at_once(parts))


def load(settings: Settings, folder: ReleaseFolder, how: How, bar: Bar, say: Callable[[str], None]) -> Loaded:
    """Load a release, unless it is loaded already; the served release does not change.

    If an earlier load of this release ended early, for whatever reason, continue where it stopped.

    Args:
        settings: where HBase is.
        folder: a scored release.
        how: to load.
        bar: shows the progress (`predictions.progress.bar`).
        say: called with a line of text for the user.

    Returns:
        What was loaded, as in the release's manifest.

    Raises:
        InputError: the part files do not match the release's regions.
        RefusedError: HBase rejected rows; the others are loaded.
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
            say(f"release {folder.release} is already loaded")
            return folder.manifest.loaded
        releases.claim(folder.release)
        state = releases.state(folder.release)
        plan = _plan(connection, settings, folder, how, scored, sizes, say)
        parts = loader.load(connection, plan, scored.rows, bar, say)
        loaded = Loaded(scored.rows, parts=[Part(part.rows, part.id_digest) for part in parts])
        checkpoints, proof = Checkpoints(connection, plan), Proof()
        differences = list(mismatches(replace(folder.manifest, loaded=loaded).accounts))
        if not differences:
            proof = loader.prove(plan, parts)
            wrong = [proof.mismatches[part] for part in sorted(proof.mismatches)]
            differences = wrong + _count(plan, loaded.parts, proof, bar, say)
        if differences:
            if releases.state(folder.release) != state:
                raise VerificationError(
                    f"table {plan.table}: {'; '.join(differences)}: another load has proved it in the meantime, so "
                    "it is kept; `verify --full` compares it"
                )
            _remove(connection, plan, checkpoints)
            raise VerificationError(
                f"table {plan.table}: {'; '.join(differences)}: the table was deleted; load the release again"
            )
        seconds = round(time.monotonic() - started, 3)
        loaded = replace(loaded, seconds=seconds, proved=len(proof.proved))
        folder.write_manifest(replace(folder.manifest, loaded=loaded))
        releases.finish(folder.release, folder.manifest)
        checkpoints.remove_all()
    return loaded


@contextmanager
def table_ahead(settings: Settings, release: str, say: Callable[[str], None]) -> Iterator[None]:
    """Make a new release's table while the block scores the release; `load` then finds it.

    If the table cannot be made, `load` tries it again. If the block fails, the table stays for a later `load`, or for
    `releases --clean`; a JVM that is still making it is ended.

    Raises:
        ServiceError: HBase cannot be reached.
    """
    points = [point.decode() for point in split_points(settings.hbase.regions)]
    with Connection(settings.hbase.server(loading=True)) as connection:
        releases = Releases(connection, settings.name)
        releases.make_table()
        releases.claim(release)
        releases.start_load(release)  # first, as in `_plan`
        with making_table(
            connection, release_table(settings.name, release), points, settings.hadoop.bin, say
        ) as finish:
            yield
            try:
                finish()
            except PredictionsError as error:
                say(f"{error}; `load` makes it again")


def _check_parts(folder: ReleaseFolder, parts: int) -> dict[str, int]:
    """Return the sizes of the part files by name; raise InputError unless each region has exactly one, complete."""
    path, sizes = f"{folder.path}/scored", folder.sizes("scored")
    numbers = {name: part for part in range(parts) for name in (part_name(part), part_name(part) + PACKED)}
    files = Counter(numbers[name] for name in sizes if name in numbers)
    if extra := [name for name in sizes if name not in numbers or files[numbers[name]] > 1]:
        raise InputError(f"{path}: {', '.join(extra)}: the release has {parts} parts, each once; remove extra files")
    if missing := [part_name(part) for part in range(parts) if part not in files]:
        raise InputError(f"{path}: {', '.join(missing)}: missing; remove this folder and score again")
    for name, size in sizes.items():
        # Tasks would not notice: Hadoop adds a missing line feed. A packed file has its own end, which is checked.
        if not name.endswith(PACKED) and size:
            end = b"".join(folder.blocks(f"{path}/{name}", size - 1, end=b""))
            if end != b"\n":
                raise InputError(f"{path}/{name}: it ends in the middle of a line; remove its folder and score again")
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
    """Return the plan of the load that was begun, or of a new one; make the release's table if it is missing."""
    releases, release, points = Releases(connection, settings.name), folder.release, scored.split_points
    table = release_table(settings.name, release)
    load_id = releases.load_id(release)
    if load_id and table.encode() in connection.tables() and _has_other_regions(connection, settings, table, points):
        connection.delete_table(table)
    if load_id is None or table.encode() not in connection.tables():
        load_id = releases.start_load(release)  # first: a table must never have the checkpoints of another
        make_table(connection, table, points, settings.hadoop.bin, say)
    # Other part files, of a release that was scored again, must not have these checkpoints either.
    parts = xxhash.xxh3_64_hexdigest(json.dumps([points, sizes, str(scored.id_digest)]).encode())
    rate = how.rate / how.at_once(len(points) + 1) if how.rate else None
    server, columns = settings.hbase.server(loading=True), folder.manifest.columns
    return Plan(server, settings.name, release, f"{load_id}-{parts}", points, rate, columns)


def _has_other_regions(connection: Connection, settings: Settings, table: str, points: Sequence[str]) -> bool:
    """Return whether a table without rows, which a run made before it scored, has other regions than were scored."""
    starts = [region.start.decode() for region in connection.regions(table)]
    if starts[1:] == points or not find_command("hbase", settings.hadoop.bin):  # without it, all tables have one region
        return False
    return next(connection.keys(table, b"", b"", [FAMILY], 1), None) is None


def _count(plan: Plan, parts: Sequence[Part], proof: Proof, bar: Bar, say: Callable[[str], None]) -> list[str]:
    """Count the rows of the regions that HBase's files say nothing about, and return how they differ from the parts."""
    numbers = [number for number in range(plan.parts) if number not in proof.proved | proof.mismatches.keys()]
    if not numbers:
        return []
    if proof.doubts:
        first = min(proof.doubts)
        say(f"counting the rows of {len(numbers)} of {plan.parts} regions ({part_name(first)}: {proof.doubts[first]})")
    with bar("verify", "rows") as progress:
        return verify_table(plan, parts, None, cores(), progress, numbers).mismatches


def _remove(connection: Connection, plan: Plan, checkpoints: Checkpoints) -> None:
    """Delete a table that is wrong, and the checkpoints."""
    for part in range(plan.parts):
        checkpoints.remove(part)  # they were wrong
    connection.delete_table(plan.table)  # another load would not remove an extra row
