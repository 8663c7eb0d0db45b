"""Export: one snapshot of the database into part files of record lines, and the release's first manifest."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from predictions.errors import InputError, SnapshotLostError
from predictions.formats import row_key
from predictions.formats.id_digest import IdDigest
from predictions.formats.manifest import Export, Manifest
from predictions.formats.manifest import Snapshot as Moment
from predictions.formats.names import part_name
from predictions.formats.record_line import NULL, SEPARATOR, field_ends, first_fields
from predictions.settings import Settings
from predictions.sources import open_database
from predictions.sources.base import Share, Snapshot, null_ids
from predictions.storage import ReleaseFolder, Storage
from predictions.workers import Pace, Report, run_tasks

PART_BYTES = 128 << 20  # a part file is closed at the first block that takes it there: one HDFS block, one split
ATTEMPTS = 3  # at a snapshot that is not lost
PAUSE_SECONDS = 1.0  # before the next one: whatever the replica had to do may not be done yet


@dataclass(frozen=True)
class Written:
    """What was written, and how many of its records have no ID."""

    export: Export = field(default_factory=Export)
    null_ids: int = 0

    def __add__(self, other: "Written") -> "Written":
        return Written(self.export + other.export, self.null_ids + other.null_ids)


def _counted(block: bytes, fields: int) -> Written:
    """Return what a block of record lines comes to."""
    record_ids = first_fields(block, field_ends(block, fields))
    rows, unlabelled = len(record_ids), block.count(SEPARATOR + NULL + b"\n")
    digest, unfit_ids = IdDigest.of(record_ids), len(row_key.unfit(record_ids))
    counts = Export(rows, rows - unlabelled, digest, unfit_ids, bytes=len(block))
    return Written(counts, record_ids.count(NULL))


def export(
    settings: Settings,
    storage: Storage,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
    rate: float | None = None,
) -> ReleaseFolder:
    """Start a new release: export every record with its features and its label.

    Args:
        settings: names the source, the ID, the features and the label.
        storage: where the release's folder is made.
        progress: called with the rows written so far and about how many the snapshot has.
        say: called with a line for a person.
        rate: rows a second, at most; None for as many as the database gives.

    Raises:
        InputError: the source, a column or the IDs are not as they must be; nothing is left behind.
        ServiceError: the database cannot be reached, took too long, or could not keep one snapshot to the end.
    """

    def again(state: RetryCallState) -> None:
        assert state.outcome
        say(f"{state.outcome.exception()}; the export begins anew")

    attempts = Retrying(
        retry=retry_if_exception_type(SnapshotLostError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_fixed(PAUSE_SECONDS),
        before_sleep=again,
        reraise=True,
    )
    for attempt in attempts:
        with attempt:
            return _export(settings, storage, progress, say, rate)
    raise AssertionError


def _export(
    settings: Settings,
    storage: Storage,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
    rate: float | None,
) -> ReleaseFolder:
    started = time.monotonic()
    names = [settings.database.id, *settings.model.features, settings.model.label]
    with open_database(settings.database).snapshot(names) as snapshot:
        folder = storage.new_release()
        if snapshot.note:
            say(snapshot.note)
        with folder.writing("export") as target:
            written = _write(snapshot, folder, target, rate, lambda rows: progress(rows, max(rows, snapshot.expected)))
            if not written.export.rows:
                raise InputError(f"{settings.database.table or 'the query'}: no records to export")
            if written.null_ids:
                raise null_ids(names[0], written.null_ids, settings.database.table)
        record_id, *features, label = snapshot.columns
    folder.write_manifest(
        Manifest(
            name=settings.name,
            release=folder.release,
            source=settings.database.model_dump(include={"table", "query", "id"}, exclude_none=True),
            id=record_id,
            features=features,
            label=label,
            snapshot=Moment(snapshot.time.isoformat(timespec="milliseconds"), snapshot.id),
            export=replace(written.export, seconds=round(time.monotonic() - started, 3)),
        )
    )
    return folder


def _write(
    snapshot: Snapshot, folder: ReleaseFolder, target: str, rate: float | None, progress: Callable[[int], None]
) -> Written:
    """Write all shares of a snapshot, each in a process of its own where there are several."""
    shares = snapshot.shares()
    each = rate / len(shares) if rate else None
    write = partial(_write_share, folder, target, len(snapshot.columns), len(shares), each)
    if len(shares) == 1:
        return write((0, shares[0]), lambda written: progress(written.export.rows))
    latest = [Written()] * len(shares)
    for event in run_tasks(write, list(enumerate(shares)), len(shares)):
        latest[event.task] = event.value
        progress(sum(written.export.rows for written in latest))
    return sum(latest, Written())


def _write_share(
    folder: ReleaseFolder,
    target: str,
    fields: int,
    shares: int,
    rate: float | None,
    task: tuple[int, Share],
    report: Report,
) -> Written:
    """Write a share into part files whose numbers are no other share's; return what they come to."""
    number, share = task
    written, pace, part_bytes = Written(), Pace(rate), 0
    file: BinaryIO | None = None
    with ExitStack() as opened:
        for block in share.blocks():
            if file is None or part_bytes >= PART_BYTES:
                opened.close()
                file = folder.create(f"{target}/{part_name(number + written.export.parts * shares)}")
                opened.enter_context(file)
                written, part_bytes = written + Written(Export(parts=1)), 0
            file.write(block)
            part_bytes += len(block)
            counted = _counted(block, fields)
            written += counted
            pace.wait(counted.export.rows)
            report(written)
    return written
