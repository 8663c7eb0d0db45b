"""Compare a release's table with what was scored and loaded, region by region."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from loader.compare import EXAMPLES, KEY_ROWS, KINDS, TableRange, compare_range, count_range
from loader.plan import Plan
from predictions.errors import InputError
from predictions.formats.manifest import Part
from predictions.formats.names import part_name
from predictions.hbase.connection import Connection
from predictions.settings import Settings
from predictions.storage import ReleaseFolder
from predictions.workers import Report, run_tasks

Progress = Callable[[float, float], None]
PAGE_BYTES = 4 << 20  # of prediction lines whose rows one request reads


@dataclass
class Verified:
    """The result of comparing a table.

    Args:
        rows: in the table.
        cells: that were compared; 0 if only row keys were read.
        seconds: that it took.
        mismatches: a line of text for each difference; for rows, the first 20 of each kind.
        counts: how many rows are missing, extra and different; empty if only row keys were read.
    """

    rows: int = 0
    cells: int = 0
    seconds: float = 0.0
    mismatches: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def verify(settings: Settings, folder: ReleaseFolder, full: bool, processes: int, progress: Progress) -> Verified:
    """Compare a loaded release's table with what was scored.

    Args:
        settings: where HBase is.
        folder: the release's, with its prediction lines.
        full: compare every cell with the prediction lines, rather than row counts and ID digests.
        processes: how many regions are read at once.
        progress: called with the rows read so far and their total.

    Raises:
        InputError: the release is not loaded.
        ServiceError: HBase or HDFS cannot be reached.
    """
    loaded = folder.manifest.loaded
    if not loaded:
        raise InputError(f"{folder.path}: not loaded; `predictions load` loads it")
    server, points = settings.hbase.server(loading=True), folder.scored.split_points
    plan = Plan(server, settings.name, folder.release, "", points, columns=folder.manifest.columns)
    return verify_table(plan, loaded.parts, folder if full else None, processes, progress)


def verify_table(
    plan: Plan,
    parts: Sequence[Part],
    folder: ReleaseFolder | None,
    processes: int,
    progress: Progress,
    numbers: Sequence[int] | None = None,
) -> Verified:
    """Read a release's table once, region by region.

    Args:
        plan: of the load.
        parts: what was loaded of each part.
        folder: where the prediction lines are, to compare every cell with; None to read only row keys.
        processes: how many regions are read at once.
        progress: called with the rows read so far and their total.
        numbers: the regions to read; None: all.
    """
    started = time.monotonic()
    if numbers is None:
        numbers = range(plan.parts)
    total = sum(parts[number].rows for number in numbers)
    rows, ranges = dict.fromkeys(numbers, 0), {}
    for event in run_tasks(partial(_read, plan, folder), numbers, processes):
        number = numbers[event.task]
        if event.done:
            ranges[number] = event.value
        rows[number] = event.value.rows if event.done else event.value
        progress(sum(rows.values()), total)
    verified = Verified(sum(rows.values()), sum(table_range.cells for table_range in ranges.values()))
    for number in numbers:
        verified.mismatches += _mismatches(plan, number, parts[number], ranges[number])
    if folder:
        for kind in KINDS:
            verified.counts[kind] = sum(table_range.mismatches[kind] for table_range in ranges.values())
            examples = [example for number in sorted(ranges) for example in ranges[number].examples[kind]]
            verified.mismatches += [f"{kind}: {example}" for example in examples[:EXAMPLES]]
    verified.seconds = time.monotonic() - started
    return verified


def _mismatches(plan: Plan, number: int, part: Part, table_range: TableRange) -> Iterator[str]:
    start, stop = (bound.decode() for bound in plan.range(number))
    region = f"{part_name(number)} (row keys {start or 'from the first'} to {stop or 'the last'})"
    if table_range.rows != part.rows:
        yield f"{region}: the table holds {table_range.rows:,} rows, {part.rows:,} were loaded"
    elif table_range.id_digest != part.id_digest:
        yield f"{region}: the table holds {table_range.rows:,} rows, but not those that were loaded"


def _read(plan: Plan, folder: ReleaseFolder | None, part: int, report: Report) -> TableRange:
    with Connection(plan.server) as connection:
        if not folder:
            return count_range(connection, plan.table, plan.range(part), report)
        blocks = folder.blocks(folder.part("scored", part))
        first = next(blocks, b"")
        # A cell may be 10 MB large.
        page_rows = max(1, min(KEY_ROWS, PAGE_BYTES * first.count(b"\n") // max(1, len(first))))
        lines = chain([first], blocks)
        return compare_range(connection, plan.table, plan.range(part), lines, plan.columns, page_rows, report)
