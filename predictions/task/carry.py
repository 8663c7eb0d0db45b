"""Carry-over: a record that is unchanged since the served release was scored keeps its prediction line, byte for byte.

The mapper writes an unscored line for each record (`predictions.formats.unscored`). The reducer reads these lines
together with the served release's, in the order of their row keys, each once: if row key and fingerprint are the same,
the served release's line is kept. All other records are scored. The same pass compares the two releases.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np

from predictions.comparison.comparison import Comparisons, aligned
from predictions.comparison.distribution import NO_LINES, Lines
from predictions.formats.record_line import BLOCK_BYTES, NULL, SEPARATOR, join_lines, split_lines, write_rows
from predictions.formats.unscored import FEATURES, record_lines

WAITING_BYTES = 8 << 20  # limit of the lines that wait for the records before them to be scored


class _Range(NamedTuple):
    """The lines of both releases in one range of row keys, of which some records wait to be scored.

    Args:
        is_waiting: for each of the new lines 1 if its record is to be scored, else 0.
        records: the record lines to score.
        lines: the other new lines.
        before: the served release's lines that are not carried over.
    """

    is_waiting: bytes
    records: bytes
    lines: bytes
    before: bytes

    def filled_in(self, scored: list[bytes]) -> bytes:
        """Return all new lines, given the prediction lines of the records that were waiting."""
        waited, others = iter(scored), iter(split_lines(self.lines))
        return join_lines(next(waited if is_waiting else others) for is_waiting in self.is_waiting)


def carry_over(
    blocks: Iterable[bytes],
    served: Iterable[bytes],
    score: Callable[[bytes], bytes],
    scored_at: bytes,
    counts: Counter[str],
    comparison: Comparisons | None = None,
    to_score_bytes: int | None = None,
) -> Iterator[bytes]:
    """Yield the prediction lines of the records: the served release's, or new ones.

    A call of an estimator costs as much as scoring a thousand records. So ranges of row keys are collected until they
    have `to_score_bytes` of records to score, or `WAITING_BYTES` in all. Memory holds that, and a block of both.

    Args:
        blocks: lines of the mappers, one for each row key, in order.
        served: blocks of the served release's prediction lines, in order.
        score: returns the prediction lines of a block of record lines.
        scored_at: the time of what is not carried over.
        counts: the number of lines that are carried over is added to `carried`.
        comparison: the rows of both releases are added to it; None to compare nothing.
        to_score_bytes: size of the records that are scored at once, about; None: `BLOCK_BYTES`.
    """
    waiting: list[_Range] = []
    for old, new in aligned(map(Lines.of, served), map(Lines.of, filter(None, blocks))):
        waiting.append(_join(old, new, scored_at, counts, comparison))
        to_score = sum(len(part.records) for part in waiting)
        size = sum(len(part.lines) + len(part.before) for part in waiting)
        if not to_score or to_score >= (to_score_bytes or BLOCK_BYTES) or to_score + size >= WAITING_BYTES:
            yield from _scored(waiting, score, comparison)
            waiting = []
    yield from _scored(waiting, score, comparison)


def _join(old: Lines, new: Lines, scored_at: bytes, counts: Counter[str], comparison: Comparisons | None) -> _Range:
    """Carry lines over in one range of row keys, and add them to the comparison."""
    # An unscored line has neither a time nor an error; of lines that have one, no row is found.
    unscored_fields = zip(old.keys, old.records, repeat(NULL), repeat(NULL), strict=False)
    # The fields are joined, since the garbage collector would walk through so many tuples.
    row_of = dict(zip(map(SEPARATOR.join, unscored_fields), range(len(old.keys)), strict=True))
    fields = zip(new.keys, new.records, new.scored, new.errors, strict=True)
    served_rows = list(map(row_of.get, map(SEPARATOR.join, fields)))
    served_lines = list(map(SEPARATOR.join, zip(*old.columns, strict=True)))
    features = new.cells[FEATURES] if new.cells else ()
    lines, to_score, is_waiting = list[bytes](), list[tuple[bytes, bytes]](), bytearray(len(served_rows))
    for index, row in enumerate(served_rows):
        if row is not None:
            lines.append(served_lines[row])
        elif new.scored[index] == new.errors[index] == NULL:
            is_waiting[index] = True
            to_score.append((new.keys[index], features[index]))
        else:  # an unreadable line, or an ID for different records: the output will be refused
            line = new.line(index)
            lines.append((line if line.scored != NULL else line._replace(scored=scored_at)).join())
    is_carried = np.zeros(len(old.keys), dtype=bool)
    is_carried[[row for row in served_rows if row is not None]] = True
    counts["carried"] += int(is_carried.sum())
    before = b""
    if comparison is not None:
        carried = old.take(np.flatnonzero(is_carried))
        comparison.add(carried, carried)
        if not is_carried.all():
            before = write_rows(zip(*old.take(np.flatnonzero(~is_carried)).columns, strict=True))
    return _Range(bytes(is_waiting), record_lines(to_score), join_lines(lines) if lines else b"", before)


def _scored(waiting: list[_Range], score: Callable[[bytes], bytes], comparison: Comparisons | None) -> Iterator[bytes]:
    """Yield the lines of ranges, after scoring the records that wait."""
    records = b"".join(part.records for part in waiting)
    scored_lines = iter(split_lines(score(records)) if records else ())
    for part in waiting:
        lines = list(islice(scored_lines, sum(part.is_waiting)))
        if comparison is not None and (part.before or lines):
            after = Lines.of(join_lines(lines)) if lines else NO_LINES
            comparison.add(Lines.of(part.before) if part.before else NO_LINES, after)
        if part.is_waiting:
            yield part.filled_in(lines)
