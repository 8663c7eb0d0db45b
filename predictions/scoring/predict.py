"""Score records into prediction lines, block by block, and name the record that makes a model raise or crash."""

import faulthandler
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from predictions.errors import InputError, InternalError
from predictions.formats.record_line import (
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
from predictions.scoring.model import Model, Models, Scores
from predictions.task import environment

TRIAL_FROM = 2  # after so many attempts that died, a block is first scored in a forked process, at twice the cost


class Scorer:
    """Score blocks of records.

    Args:
        model: the model, or the models of several labels.
        scored: the release's time (`names.scored_at`).
        place: where the records are, for messages: the split or the region.
    """

    def __init__(self, model: Model | Models, scored: bytes, place: str) -> None:
        self._model = model
        self._scored = scored
        self._place = place

    def lines(self, records: Sifted) -> bytes:
        """Return the prediction lines of a block's records, of which there must be at least one."""
        block, ends = records.block, records.ends
        scores = self._predict(block, ends)
        columns = (
            row_keys(records.record_ids),
            *scores.cells,
            fingerprints(feature_fields(block, ends, ends.shape[1] - 1 - len(self._model.features))),
            [self._scored] * len(records.record_ids),
            scores.errors,
        )
        return write_rows(zip(*columns, strict=True))

    def score(self, block: bytes) -> bytes:
        """Return the prediction lines of a block of record lines, each with the ID, the features and one label.

        Raises:
            InputError: the lines do not have the fields that the model takes.
        """
        fields_taken = len(self._model.features) + 2
        try:
            ends = field_ends(block, fields_taken)
        except ValueError as error:
            fields = f"{error.args[1]} fields, but the model takes {fields_taken}"
            raise InputError(
                f"{self._place}: a record has {fields}: give mapper.py and reducer.py the same model"
            ) from error
        return self.lines(Sifted(block, ends, first_fields(block, ends), []))

    def _predict(self, block: bytes, ends: np.ndarray) -> Scores:
        """Score a block of records; if that fails, raise an error that names the record."""
        score = partial(self._score, ends.shape[1])
        trial = partial(self._score_in_one_thread, ends.shape[1])
        if environment.attempt() >= TRIAL_FROM and (signal_name := killing_signal(trial, block)):
            line = first_fault(block, lambda lines: killing_signal(trial, lines) is not None)
            raise InternalError(f"{self._location(line)}: scoring it kills the process ({signal_name})")
        try:
            return self._model.score(block, ends)
        except Exception as error:
            line = first_fault(block, lambda lines: raises(score, lines))
            message = " ".join(str(error).split())  # scikit-learn's messages may have several lines
            raise InternalError(f"{self._location(line)}: {type(error).__name__}: {message}") from error

    def _score(self, fields: int, block: bytes) -> Scores:
        """Score lines that have so many fields."""
        return self._model.score(block, field_ends(block, fields))

    def _score_in_one_thread(self, fields: int, block: bytes) -> None:
        with self._model.one_thread():  # a fork has no OpenMP threads, and would wait for them for ever
            self._score(fields, block)

    def _location(self, line: bytes | None) -> str:
        record = f"record {line.partition(SEPARATOR)[0].decode()}" if line else "no single record"
        return f"{self._place}, {record}"


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
