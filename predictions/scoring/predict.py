"""From records to prediction lines, block by block; where a model raises or crashes, the record that makes it."""

import faulthandler
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from threadpoolctl import threadpool_limits

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
from predictions.formats.unreadable import Sifted
from predictions.scoring.model import Model, Scores
from predictions.task import environment
from predictions.task.carry import unscored_lines
from predictions.task.marks import Marks

CAREFUL_FROM = 2  # attempts that died before one looks for the record that kills it, at twice the cost


class Scorer:
    """Scores blocks of records.

    Args:
        model: the model.
        scored: the release's time (`names.scored_at`).
        split: the name of the input, for messages.
        marks: of a release of the same model; records with a mark are passed on unscored.
    """

    def __init__(self, model: Model, scored: bytes, split: str, marks: Marks | None = None) -> None:
        self.model = model
        self.scored = scored
        self.split = split
        self._marks = marks
        self._changed: list[bytes] = []
        self._bytes = 0

    def lines(self, records: Sifted) -> bytes:
        """Return prediction lines for records, at least one.

        With marks: the unscored lines of records that have one, and, now and then, prediction lines of the others.
        Those of many blocks are scored together: a call of an estimator costs as much as a thousand records.
        """
        if not self._marks:
            return self._score(records.block, records.record_ids, records.features)
        keys, prints = row_keys(records.record_ids), fingerprints(records.features)
        known = self._marks.have(keys, prints).tolist()
        if not all(known):
            lines = split_lines(records.block)
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
            yield self._score(block, *split_records(block, self.model.fields))

    def _score(self, block: bytes, record_ids: list[bytes], features: list[bytes]) -> bytes:
        scores = self._predict(block)
        columns = (
            row_keys(record_ids),
            scores.predictions,
            scores.probabilities,
            fingerprints(features),
            [self.scored] * len(record_ids),
            scores.errors,
        )
        return write_rows(zip(*columns, strict=True))

    def _predict(self, block: bytes) -> Scores:
        """Score a block of records; where that fails, say for which one."""
        score = self.model.score
        if environment.attempt() >= CAREFUL_FROM and (died := killing_signal(score, block)):
            line = first_fault(block, lambda lines: killing_signal(score, lines) is not None)
            raise InternalError(f"{self._place(line)}: scoring it kills the process ({died})")
        try:
            return score(block)
        except Exception as error:
            line = first_fault(block, lambda lines: raises(score, lines))
            message = " ".join(str(error).split())  # scikit-learn's may have several lines
            raise InternalError(f"{self._place(line)}: {type(error).__name__}: {message}") from error

    def _place(self, line: bytes | None) -> str:
        record = f"record {line.partition(SEPARATOR)[0].decode()}" if line else "no single record"
        return f"split {self.split}, {record}"


def first_fault(block: bytes, fails: Callable[[bytes], bool]) -> bytes | None:
    """Return the first line of a block that fails by itself; None where no line does.

    Args:
        block: whole lines, at least one, which together fail.
        fails: whether some of the lines fail.
    """
    lines = split_lines(block)
    while len(lines) > 1:
        half = lines[: len(lines) // 2]
        lines = half if fails(join_lines(half)) else lines[len(half) :]
    return lines[0] if fails(join_lines(lines)) else None


def raises(score: Callable[[bytes], Any], block: bytes) -> bool:
    """Whether scoring a block raises."""
    try:
        score(block)
    except Exception:
        return True
    return False


def killing_signal(score: Callable[[bytes], Any], block: bytes) -> str | None:
    """Score a block in a process of its own and return the name of the signal that killed it, if one did."""
    child = os.fork()
    if not child:
        faulthandler.disable()  # one stack in the log will do
        try:
            with threadpool_limits(1):  # OpenMP's threads were not forked, and would be waited for
                score(block)
        finally:
            os._exit(0)  # whatever it raised, the parent will meet itself
    _pid, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
