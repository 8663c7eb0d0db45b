"""Score records into prediction lines, block by block, and name the record that makes a model raise or crash."""

import faulthandler
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from predictions.errors import InternalError
from predictions.formats.record_line import (
    BLOCK_BYTES,
    SEPARATOR,
    feature_fields,
    field_ends,
    fingerprints,
    first_fields,
    join_lines,
    split_lines,
    write_rows,
)
from predictions.formats.row_key import row_keys
from predictions.formats.unreadable import Sifted
from predictions.scoring.model import Model, Scores
from predictions.task import environment
from predictions.task.carry import unscored_lines
from predictions.task.marks import Marks

TRIAL_FROM = 2  # after so many attempts that died, a block is first scored in a forked process, at twice the cost


class Scorer:
    """Score blocks of records.

    Args:
        model: the model.
        scored: the release's time (`names.scored_at`).
        split: the name of the input, for messages.
        marks: of a release with the same model; a record with a mark gets an unscored line.
    """

    def __init__(self, model: Model, scored: bytes, split: str, marks: Marks | None = None) -> None:
        self.model = model
        self.scored = scored
        self.split = split
        self._marks = marks
        self._changed_lines: list[bytes] = []  # record lines without a mark, not scored yet
        self._changed_bytes = 0

    def lines(self, records: Sifted) -> bytes:
        """Return prediction lines for a block's records, of which there must be at least one.

        With marks, return unscored lines for the records that have a mark, and collect the others over several blocks:
        a call of the estimator costs as much as a thousand records. Their prediction lines are returned once enough
        of them are collected; `rest` yields the last ones.
        """
        if not self._marks:
            return self._score(records.block, records.ends, records.record_ids)
        keys = row_keys(records.record_ids)
        prints = fingerprints(feature_fields(records.block, records.ends))
        marked = self._marks.have(keys, prints).tolist()
        if not all(marked):
            lines = split_lines(records.block)
            changed = [line for line, is_marked in zip(lines, marked, strict=True) if not is_marked]
            self._changed_lines += changed
            self._changed_bytes += sum(map(len, changed))
        unscored = [line for line, is_marked in zip(unscored_lines(keys, prints), marked, strict=True) if is_marked]
        block = join_lines(unscored) if unscored else b""
        return block + b"".join(self.rest()) if self._changed_bytes >= BLOCK_BYTES else block

    def rest(self) -> Iterator[bytes]:
        """Yield the prediction lines of the records that were collected and not scored yet."""
        if self._changed_lines:
            block = join_lines(self._changed_lines)
            self._changed_lines, self._changed_bytes = [], 0
            ends = field_ends(block, self.model.fields)
            yield self._score(block, ends, first_fields(block, ends))

    def _score(self, block: bytes, ends: np.ndarray, record_ids: list[bytes]) -> bytes:
        scores = self._predict(block, ends)
        columns = (
            row_keys(record_ids),
            scores.predictions,
            scores.probabilities,
            fingerprints(feature_fields(block, ends)),
            [self.scored] * len(record_ids),
            scores.errors,
        )
        return write_rows(zip(*columns, strict=True))

    def _predict(self, block: bytes, ends: np.ndarray) -> Scores:
        """Score a block of records; if that fails, raise an error that names the record."""
        score, trial = self.model.score, self._score_in_one_thread
        if environment.attempt() >= TRIAL_FROM and (signal_name := killing_signal(trial, block)):
            line = first_fault(block, lambda lines: killing_signal(trial, lines) is not None)
            raise InternalError(f"{self._location(line)}: scoring it kills the process ({signal_name})")
        try:
            return score(block, ends)
        except Exception as error:
            line = first_fault(block, lambda lines: raises(score, lines))
            message = " ".join(str(error).split())  # scikit-learn's messages may have several lines
            raise InternalError(f"{self._location(line)}: {type(error).__name__}: {message}") from error

    def _score_in_one_thread(self, block: bytes) -> None:
        with self.model.predictor.one_thread():  # a fork has no OpenMP threads, and would wait for them for ever
            self.model.score(block)

    def _location(self, line: bytes | None) -> str:
        record = f"record {line.partition(SEPARATOR)[0].decode()}" if line else "no single record"
        return f"split {self.split}, {record}"


def first_fault(block: bytes, fails: Callable[[bytes], bool]) -> bytes | None:
    """Find a line that fails alone, by bisection; return None if only several lines together fail.

    Args:
        block: whole lines, at least one, which fail together. If several of them fail alone, the first is returned.
        fails: whether a block of some of these lines fails.
    """
    lines = split_lines(block)
    while len(lines) > 1:
        half = lines[: len(lines) // 2]
        lines = half if fails(join_lines(half)) else lines[len(half) :]
    return lines[0] if fails(join_lines(lines)) else None


def raises(score: Callable[[bytes], Any], block: bytes) -> bool:
    """Return whether scoring a block raises an exception."""
    try:
        score(block)
    except Exception:
        return True
    return False


def killing_signal(score: Callable[[bytes], Any], block: bytes) -> str | None:
    """Score a block in a forked process; return the name of the signal that killed the process, or None."""
    child = os.fork()
    if not child:
        faulthandler.disable()  # one stack in the log is enough
        try:
            score(block)
        finally:
            os._exit(0)  # the parent process will see an exception itself, when it scores the block
    _pid, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
