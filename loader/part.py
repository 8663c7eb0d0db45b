"""Put one part's prediction lines into the release's table, from the part's last checkpoint on."""

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

MAX_REJECTED = 1_000  # refused rows of a part; if HBase refuses more, the cause is not what is in the rows


def load_part(
    connection: Connection,
    plan: Plan,
    part: int,
    read: Callable[[int], Iterable[bytes]],
    report: Callable[[Checkpoint], None],
) -> Checkpoint:
    """Load the rest of a part, and write a checkpoint after each batch that HBase has acknowledged.

    Args:
        connection: this process's connection.
        plan: the load's plan.
        part: the part's number.
        read: yields the part's blocks of whole lines from an offset on.
        report: called with the part's checkpoint at the start and after each batch.

    Returns:
        The last checkpoint.

    Raises:
        InputError: the lines belong to another part, or are not in order.
        RefusedError: HBase refuses so many rows that the rows cannot be the cause.
        ServiceError: HBase did not answer in time.
    """
    checkpoints = Checkpoints(connection, plan)
    checkpoint = checkpoints.read(part)
    report(checkpoint)
    starts = [region.start for region in connection.regions(plan.table)]
    pace, offset = Pace(plan.rate), checkpoint.offset
    max_rows = max(1, int(plan.rate)) if plan.rate else None  # no more than one second's rows: no bursts
    for batch in batches(read(offset), part_name(part), offset, plan.range(part), starts, max_rows):
        pace.wait(len(batch.lines))
        lines = list(map(parse_line, batch.lines))
        letters = send(connection, plan, lines)
        refused_ids = {letter.record_id for letter in letters}
        loaded_ids = [line_id for line in lines if (line_id := record_id(line.row_key)) not in refused_ids]
        rows, rejected = checkpoint.rows + len(loaded_ids), checkpoint.rejected + len(letters)
        checkpoint = Checkpoint(batch.end, rows, checkpoint.id_digest + IdDigest.of(loaded_ids), rejected)
        if letters and rejected > MAX_REJECTED:
            raise RefusedError(
                f"{part_name(part)}: HBase has rejected {rejected:,} rows, too many for the rows to be the cause; the "
                f"last reason: {letters[-1].reason}; fix that and load again"
            )
        checkpoints.write(part, checkpoint, letters)
        report(checkpoint)
    if not checkpoint.complete:
        checkpoint = replace(checkpoint, complete=True)
        checkpoints.write(part, checkpoint)
    return checkpoint


def send(connection: Connection, plan: Plan, lines: list[PredictionLine]) -> list[Rejected]:
    """Write rows, with the `scored` time of each line as its timestamp, and return the rows that HBase refuses.

    HBase does not say which row of a batch it refuses, so the batch is halved until that row is alone.
    """
    lines_by_time: dict[bytes, list[PredictionLine]] = {}
    for line in lines:
        lines_by_time.setdefault(line.scored, []).append(line)
    return [
        letter
        for scored, same_time in lines_by_time.items()
        for letter in _put(connection, plan, same_time, int(scored))
    ]


def _put(connection: Connection, plan: Plan, lines: list[PredictionLine], timestamp: int) -> list[Rejected]:
    try:
        rows = [(line.row_key, cells(line, plan.columns)) for line in lines]
        connection.put_rows(plan.table, rows, timestamp)
    except RejectedError as error:
        if len(lines) == 1:
            return [Rejected(record_id(lines[0].row_key), error.reason)]
        half = len(lines) // 2
        return [
            *_put(connection, plan, lines[:half], timestamp),
            *_put(connection, plan, lines[half:], timestamp),
        ]
    return []
