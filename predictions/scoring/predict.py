"""From record lines to prediction lines: what a task does with a block of records."""

from collections.abc import Iterator, Sequence

from predictions.errors import InternalError
from predictions.formats.record_line import (
    BLOCK_BYTES,
    SEPARATOR,
    fingerprints,
    join_lines,
    split_lines,
    split_records,
    write_rows,
)
from predictions.formats.row_key import row_keys
from predictions.scoring import faults
from predictions.scoring.model import Model, Scores
from predictions.task import environment as task
from predictions.task.carry import unscored_lines
from predictions.task.marks import Marks

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


class ChangedOnly:
    """Answers records: scores those without a mark, and passes on the others.

    Args:
        model: which scores.
        marks: of a release of the same model.
        scored: the release's time (`release.scored_at`).
    """

    def __init__(self, model: Model, marks: Marks, scored: bytes) -> None:
        self._model = model
        self._marks = marks
        self._scored = scored
        self._changed: list[bytes] = []
        self._bytes = 0

    def lines(self, records: bytes, record_ids: Sequence[bytes], features: Sequence[bytes]) -> bytes:
        """Return the unscored lines of records with a mark, and, now and then, prediction lines of the others.

        Those of many blocks are scored together: a call of an estimator costs as much as a thousand records.
        """
        keys, prints = row_keys(record_ids), fingerprints(features)
        known = self._marks.have(keys, prints).tolist()
        if not all(known):
            lines = split_lines(records)
            new = [line for line, is_known in zip(lines, known, strict=True) if not is_known]
            self._changed += new
            self._bytes += sum(map(len, new))
        kept = [line for line, is_known in zip(unscored_lines(keys, prints), known, strict=True) if is_known]
        answered = join_lines(kept) if kept else b""
        return answered + b"".join(self.rest()) if self._bytes >= BLOCK_BYTES else answered

    def rest(self) -> Iterator[bytes]:
        """Yield the prediction lines that are still to come."""
        if self._changed:
            block = join_lines(self._changed)
            self._changed, self._bytes = [], 0
            yield prediction_lines(self._model, block, *split_records(block, self._model.fields), self._scored)


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
