"""One part's prediction lines into the release's table, by puts, from its last checkpoint on."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from loader.batches import batches
from loader.checkpoints import Checkpoint, Checkpoints, Rejected
from loader.plan import Plan
from predictions.errors import RefusedError
from predictions.formats.id_digest import IdDigest
from predictions.formats.names import part_name
from predictions.formats.prediction_line import PredictionLine, cells, parse_line
from predictions.formats.row_key import record_id
from predictions.hbase.connection import Connection, RejectedError
from predictions.workers import Pace

MAX_REJECTED = 1_000  # rows of a part; where HBase refuses more, it is not for what is in them


def load_part(
    connection: Connection,
    plan: Plan,
    part: int,
    read: Callable[[int], Iterable[bytes]],
    report: Callable[[Checkpoint], None],
) -> Checkpoint:
    """Load what is not loaded yet of a part; a checkpoint is kept after each batch that HBase has acknowledged.

    Args:
        connection: this process's.
        plan: of the load.
        part: the part's number.
        read: yields the part's blocks of whole lines from an offset on.
        report: called after each batch.

    Returns:
        The last checkpoint.

    Raises:
        InputError: the lines are not this part's, or not in order.
        RefusedError: HBase refuses so many rows that it cannot be their fault.
        ServiceError: HBase could not be had in time.
    """
    checkpoints = Checkpoints(connection, plan)
    done = checkpoints.read(part)
    report(done)
    starts = [region.start for region in connection.regions(plan.table)]
    pace = Pace(plan.rate)
    rows = max(1, int(plan.rate)) if plan.rate else None  # of a batch, so that it is no burst
    for batch in batches(read(done.offset), part_name(part), done.offset, plan.range(part), starts, rows):
        pace.wait(len(batch.lines))
        lines = list(map(parse_line, batch.lines))
        letters = send(connection, plan.table, lines)
        refused = {letter.record_id for letter in letters}
        loaded = [record for line in lines if (record := record_id(line.row_key)) not in refused]
        digest = done.id_digest + IdDigest.of(loaded)
        done = Checkpoint(batch.end, done.rows + len(loaded), digest, done.rejected + len(letters))
        if letters and done.rejected > MAX_REJECTED:
            raise RefusedError(
                f"{part_name(part)}: HBase refuses row after row ({done.rejected:,} so far), the last one since "
                f"{letters[-1].reason}; mend that and load again"
            )
        checkpoints.write(part, done, letters)
        report(done)
    if not done.complete:
        done = replace(done, complete=True)
        checkpoints.write(part, done)
    return done


def send(connection: Connection, table: str, lines: list[PredictionLine]) -> list[Rejected]:
    """Write rows, each with its line's own `scored` as timestamp, and return those that HBase refuses.

    HBase does not say which row of a batch it refuses: the batch is halved until it stands alone.
    """
    by_time: dict[bytes, list[PredictionLine]] = {}
    for line in lines:
        by_time.setdefault(line.scored, []).append(line)
    return [letter for scored, rows in by_time.items() for letter in _put(connection, table, rows, int(scored))]


def _put(connection: Connection, table: str, lines: list[PredictionLine], timestamp: int) -> list[Rejected]:
    try:
        connection.put_rows(table, [(line.row_key, cells(line)) for line in lines], timestamp)
    except RejectedError as error:
        if len(lines) == 1:
            return [Rejected(record_id(lines[0].row_key), error.reason)]
        half = len(lines) // 2
        return [
            *_put(connection, table, lines[:half], timestamp),
            *_put(connection, table, lines[half:], timestamp),
        ]
    return []
