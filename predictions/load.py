"""Load: a release's prediction lines into a table of its own, and the proof that all of them are there."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import xxhash

from loader.checkpoints import Checkpoint, Checkpoints
from loader.connection import Connection
from loader.plan import Plan, part_name
from loader.tables import make_table
from predictions.errors import InputError, RefusedError, ServiceError, VerificationError
from predictions.load_hadoop import LoadJob
from predictions.load_local import load_local
from predictions.pointer import LOADED, Releases
from predictions.progress import DONE, LOADING, WAITING, LoadDisplay, bar
from predictions.records import escape, write_rows
from predictions.release import release_table
from predictions.settings import Settings
from predictions.storage import ReleaseFolder
from predictions.verify import verify_table
from predictions.workers import cores

REJECTED = "rejected.txt"
REJECTED_HEAD = b"record\treason\n"


@dataclass(frozen=True)
class How:
    """How to load.

    Args:
        runner: `local`, in processes of this machine, or `hadoop`, as a job.
        processes: how many at once; by default as many as there are cores, or all tasks of the job.
        rate: rows a second of all of them together; None for as many as they can.
    """

    runner: str = "local"
    processes: int | None = None
    rate: float | None = None

    def at_once(self, parts: int) -> int:
        """Return how many of so many parts are loaded at once."""
        return min(self.processes or (cores() if self.runner == "local" else parts), parts)


def load(
    settings: Settings, folder: ReleaseFolder, how: How, display: LoadDisplay, report: Callable[[str], None]
) -> dict[str, Any]:
    """Load a release, unless that has been done; nothing that is served changes.

    It goes on where an earlier load of this release ended, whatever ended it.

    Args:
        settings: where HBase is.
        folder: a release that was scored.
        how: to load.
        display: shows how far each part is.
        report: called with a line of text where something is worth knowing.

    Returns:
        The part `loaded` of the release's manifest.

    Raises:
        InputError: the part files are not those of the release's regions.
        RefusedError: HBase refuses rows; the others are loaded.
        ServiceError: HBase cannot be reached.
        VerificationError: the table does not hold what was written.
    """
    folder.require("scored", "score")
    manifest = folder.manifest()
    scored = folder.counts(manifest)
    sizes = _check_parts(folder, len(scored["split_points"]) + 1)
    job = LoadJob(settings, folder) if how.runner == "hadoop" else None
    started = time.monotonic()
    with Connection(settings.hbase.server(loading=True)) as connection:
        releases = Releases(connection, settings.name)
        releases.make_table()
        if releases.state(folder.release) == LOADED:
            report(f"release {folder.release} is loaded already")
            return manifest["loaded"]
        releases.claim(folder.release)
        plan = _plan(connection, settings, folder, how, scored, sizes, report)
        checkpoints = Checkpoints(connection, plan)
        before = checkpoints.read_all()
        display.start(scored["rows"], {part: _state(done, sizes[part]) for part, done in before.items()})
        if job:
            job.run(plan, how.processes, lambda _share: _show(settings, plan, sizes, display))
            done = checkpoints.read_all()
        else:
            todo = [part for part, size in enumerate(sizes) if before[part].offset != size]
            # By the processes' own account: another load of the same release may have put checkpoints of its own.
            done = before | load_local(folder, plan, todo, how.at_once(plan.parts), display.update)
        _refuse_rejected(folder, checkpoints, done)
        parts = [{"rows": part.rows, "id_digest": f"{part.id_digest:016x}"} for part in done.values()]
        _prove(plan, checkpoints, parts, scored)
        loaded = {"rows": scored["rows"], "seconds": round(time.monotonic() - started, 3), "parts": parts}
        folder.write_manifest(manifest | {"loaded": loaded})
        releases.finish(folder.release, manifest | {"loaded": loaded})
        checkpoints.remove_all()
    return loaded


def _check_parts(folder: ReleaseFolder, parts: int) -> list[int]:
    """Return the sizes of the part files; InputError unless each region has one, whole."""
    path, sizes, names = f"{folder.path}/scored", folder.sizes("scored"), list(map(part_name, range(parts)))
    if extra := sorted(sizes.keys() - set(names)):
        raise InputError(f"{path}: {', '.join(extra)}: the release has {parts} parts, and each may stand there once")
    if missing := sorted(set(names) - sizes.keys()):
        raise InputError(f"{path}: {', '.join(missing)}: not there; score the release again")
    for name in names:
        # Hadoop gives its tasks the line feed that a file lacks: they could not tell.
        if sizes[name] and not b"".join(folder.blocks(f"{path}/{name}", sizes[name] - 1, end=b"")).endswith(b"\n"):
            raise InputError(f"{path}/{name}: it ends in the middle of a line; score the release again")
    return [sizes[name] for name in names]


def _plan(
    connection: Connection,
    settings: Settings,
    folder: ReleaseFolder,
    how: How,
    scored: dict[str, Any],
    sizes: list[int],
    report: Callable[[str], None],
) -> Plan:
    """Return the plan of the load that was begun, or of a new one; the release's table is there after it."""
    releases, release, points = Releases(connection, settings.name), folder.release, scored["split_points"]
    table = release_table(settings.name, release)
    load_id = releases.load_id(release)
    if load_id is None or table.encode() not in connection.tables():
        load_id = releases.start_load(release)  # first: a table must never have another one's checkpoints
        make_table(connection, table, points, settings.hadoop.bin, report)
    # Nor must other part files, of a release that was scored again.
    parts = xxhash.xxh3_64_hexdigest(json.dumps([points, sizes, scored["id_digest"]]).encode())
    rate = how.rate / how.at_once(len(points) + 1) if how.rate else None
    return Plan(settings.hbase.server(loading=True), settings.name, release, f"{load_id}-{parts}", points, rate)


def _show(settings: Settings, plan: Plan, sizes: list[int], display: LoadDisplay) -> None:
    """Show how far a job's tasks are; where HBase is away the job goes on, and its next sign of life will show it."""
    with suppress(ServiceError), Connection(settings.hbase.server()) as connection:
        for part, done in Checkpoints(connection, plan).read_all().items():
            display.update(part, *_state(done, sizes[part]))


def _state(done: Checkpoint, size: int) -> tuple[str, int]:
    return DONE if done.offset == size else LOADING if done.offset else WAITING, done.rows


def _refuse_rejected(folder: ReleaseFolder, checkpoints: Checkpoints, done: dict[int, Checkpoint]) -> None:
    """Raise RefusedError if HBase refused rows; they are kept in a file, and their parts will be loaded again."""
    parts = [part for part, checkpoint in done.items() if checkpoint.rejected]
    if not parts:
        folder.remove(REJECTED)
        return
    letters = [letter for part in parts for letter in checkpoints.rejected(part)]
    folder.remove(REJECTED)
    with folder.writing(REJECTED, make=False) as temporary, folder.create(temporary) as file:
        file.write(REJECTED_HEAD + write_rows((letter.record_id, escape(letter.reason.encode())) for letter in letters))
    for part in parts:
        checkpoints.remove(part)
    raise RefusedError(
        f"HBase refused {len(letters):,} rows, the first one since {letters[0].reason}; they are in "
        f"{folder.path}/{REJECTED}, each with its record ID and reason, and all others are loaded: mend the cause and "
        "load again"
    )


def _prove(plan: Plan, checkpoints: Checkpoints, parts: list[dict[str, Any]], scored: dict[str, Any]) -> None:
    """Raise VerificationError unless what was scored was loaded, and stands in the table."""
    digest = sum(int(part["id_digest"], 16) for part in parts) % (1 << 64)
    rows = sum(part["rows"] for part in parts)
    if (rows, f"{digest:016x}") == (scored["rows"], scored["id_digest"]):
        with bar("verify", "rows") as progress:
            faults = verify_table(plan, parts, None, cores(), progress).faults
    else:
        faults = [f"{scored['rows']:,} rows were scored, but {rows:,} were loaded, or others"]
    if faults:
        for part in range(plan.parts):
            checkpoints.remove(part)  # they were wrong
        raise VerificationError(f"table {plan.table}: {'; '.join(faults)}: load it again, from the start")
