"""From record lines to prediction lines: what a task does with a block of records."""

from collections.abc import Sequence

from predictions import faults, task
from predictions.errors import InternalError
from predictions.model import Model, Scores
from predictions.records import SEPARATOR, fingerprints, write_rows
from predictions.rowkey import row_keys

CAREFUL_FROM = 2  # attempts that died before one looks for the record that kills it, at twice the cost


def prediction_lines(
    model: Model, records: bytes, record_ids: Sequence[bytes], features: Sequence[bytes], scored: bytes
) -> bytes:
    """Score a block of records.

    Args:
        model: which scores them.
        records: whole record lines, at least one.
        record_ids: their first fields.
        features: what lies between these and their last ones.
        scored: the release's time (`release.scored_at`).
    """
    scores = predict(model, records)
    columns = (
        row_keys(record_ids),
        scores.predictions,
        scores.probabilities,
        fingerprints(features),
        [scored] * len(record_ids),
        scores.errors,
    )
    return write_rows(zip(*columns, strict=True))


def predict(model: Model, records: bytes) -> Scores:
    """Score a block of records; where that fails, say for which one."""
    if task.attempt() >= CAREFUL_FROM and (died := faults.killing_signal(model.score, records)):
        line = faults.first_fault(records, lambda lines: faults.killing_signal(model.score, lines) is not None)
        raise InternalError(f"{_place(line)}: scoring it kills the process ({died})")
    try:
        return model.score(records)
    except Exception as error:
        line = faults.first_fault(records, lambda lines: faults.raises(model.score, lines))
        message = " ".join(str(error).split())  # scikit-learn's may have several lines
        raise InternalError(f"{_place(line)}: {type(error).__name__}: {message}") from error


def _place(line: bytes | None) -> str:
    record = f"record {line.partition(SEPARATOR)[0].decode()}" if line else "no single record"
    return f"split {task.split_name()}, {record}"
