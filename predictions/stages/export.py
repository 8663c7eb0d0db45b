"""Start a release: export one snapshot of the database to part files of record lines, and write the manifest."""

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
from predictions.formats.manifest import Snapshot as SnapshotFacts
from predictions.formats.names import part_name
from predictions.formats.record_line import NULL, SEPARATOR, field_ends, first_fields, split_columns
from predictions.settings import Settings
from predictions.sources import open_database
from predictions.sources.base import Share, Snapshot, null_ids
from predictions.storage import ReleaseFolder, Storage
from predictions.workers import Pace, Report, run_tasks

PART_BYTES = 128 << 20  # a part file is closed once it is this large: one HDFS block, one split
ATTEMPTS = 3  # to export without losing the snapshot
PAUSE_SECONDS = 1.0  # before the next attempt: the replica may still be busy with what cost it the snapshot


@dataclass(frozen=True)
class Counts:
    """The counts of what was written, and how many of the records have no ID."""

    export: Export = field(default_factory=Export)
    null_ids: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.export + other.export, self.null_ids + other.null_ids)


def _count(block: bytes, fields: int, labels: int) -> Counts:
    """Return the counts of a block of record lines, which have so many fields, of which the last ones are labels."""
    record_ids = first_fields(block, field_ends(block, fields))
    rows, each = len(record_ids), list[int]()
    if labels == 1:
        labelled = rows - block.count(SEPARATOR + NULL + b"\n")
    else:
        each = [rows - column.count(NULL) for column in split_columns(block, fields)[-labels:]]
        labelled = each[0]
    digest, unfit_ids = IdDigest.of(record_ids), len(row_key.unfit(record_ids))
    return Counts(Export(rows, labelled, each, digest, unfit_ids, bytes=len(block)), record_ids.count(NULL))


def export(
    settings: Settings,
    storage: Storage,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
    rate: float | None = None,
) -> ReleaseFolder:
    """Start a new release: export every record with its features and its label.

    Args:
        settings: the database, the columns of the ID, the features and the label.
        storage: where to make the release's folder.
        progress: called with the rows written so far and the approximate number of rows in the snapshot.
        say: called with a line of text for the user.
        rate: at most so many rows a second; None for as many as the database gives.

    Raises:
        InputError: the table, a column or an ID is missing or invalid; nothing is left behind.
        ServiceError: the database cannot be reached, took too long, or could not keep one snapshot to the end.
    """

    def report_retry(state: RetryCallState) -> None:
        assert state.outcome
        say(f"{state.outcome.exception()}; starting the export again")

    attempts = Retrying(
        retry=retry_if_exception_type(SnapshotLostError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_fixed(PAUSE_SECONDS),
        before_sleep=report_retry,
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
    labels = len(settings.models)
    names = [settings.database.id, *settings.features, *(model.label for model in settings.models)]
    with open_database(settings.database).snapshot(names) as snapshot:
        folder = storage.new_release()
        if snapshot.note:
            say(snapshot.note)
        with folder.writing("export") as target:
            writer = _Writer(folder, target, len(snapshot.columns), labels)
            counts = _write(snapshot, writer, rate, lambda rows: progress(rows, max(rows, snapshot.expected)))
            if not counts.export.rows:
                raise InputError(f"{settings.database.table or 'the query'}: no records to export")
            if counts.null_ids:
                raise null_ids(names[0], counts.null_ids, settings.database.table)
        record_id, *columns = snapshot.columns
    folder.write_manifest(
        Manifest(
            name=settings.name,
            release=folder.release,
            source=settings.database.model_dump(include={"table", "query", "id"}, exclude_none=True),
            id=record_id,
            features=columns[:-labels],
            **({"label": columns[-1]} if labels == 1 else {"labels": columns[-labels:]}),
            snapshot=SnapshotFacts(snapshot.time.isoformat(timespec="milliseconds"), snapshot.id),
            export=replace(counts.export, seconds=round(time.monotonic() - started, 3)),
        )
    )
    return folder


@dataclass(frozen=True)
class _Writer:
    """What the processes that write shares have in common.

    Args:
        folder: the release's folder.
        target: the folder to write to.
        fields: number of fields of a line.
        labels: number of labels among them.
    """

    folder: ReleaseFolder
    target: str
    fields: int
    labels: int


def _write(snapshot: Snapshot, writer: _Writer, rate: float | None, progress: Callable[[int], None]) -> Counts:
    """Write all shares of a snapshot; if there are several, each in its own process."""
    shares = snapshot.shares()
    share_rate = rate / len(shares) if rate else None
    write = partial(_write_share, writer, len(shares), share_rate)
    if len(shares) == 1:
        return write((0, shares[0]), lambda counts: progress(counts.export.rows))
    latest = [Counts()] * len(shares)
    for event in run_tasks(write, list(enumerate(shares)), len(shares)):
        latest[event.task] = event.value
        progress(sum(counts.export.rows for counts in latest))
    return sum(latest, Counts())


def _write_share(
    writer: _Writer,
    shares: int,
    rate: float | None,
    task: tuple[int, Share],
    report: Report,
) -> Counts:
    """Write a share to part files, numbered so that no other share uses the same numbers; return their counts."""
    number, share = task
    counts, pace, part_bytes = Counts(), Pace(rate), 0
    file: BinaryIO | None = None
    with ExitStack() as open_file:
        for block in share.blocks():
            if file is None or part_bytes >= PART_BYTES:
                open_file.close()
                file = writer.folder.create(f"{writer.target}/{part_name(number + counts.export.parts * shares)}")
                open_file.enter_context(file)
                counts, part_bytes = counts + Counts(Export(parts=1)), 0
            file.write(block)
            part_bytes += len(block)
            block_counts = _count(block, writer.fields, writer.labels)
            counts += block_counts
            pace.wait(block_counts.export.rows)
            report(counts)
    return counts
