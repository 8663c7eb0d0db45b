"""Carry-over: a record that has not changed since the current release was scored keeps its prediction line.

The mapper passes records on unscored, each under its row key:

    a01b:42 TAB feature ... TAB label       a record line, the prefix of its row key before it (predictions/rowkey.py)

So they come to the reducer in the order of the current release's lines. It walks through both, and scores only the
records whose fingerprint is another one there, or that are not there.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Iterator

from predictions import unreadable
from predictions.model import Model
from predictions.records import SEPARATOR, fingerprints, first_fields, join_lines, split_lines, split_records
from predictions.rowkey import record_id, row_keys
from predictions.schema import PredictionLine, fields_of
from predictions.scoring import prediction_lines

_RECORD = PredictionLine._fields.index("record")


def keyed_lines(records: bytes, record_ids: list[bytes]) -> bytes:
    """Return a block of record lines, at least one, under their row keys."""
    prefixes = [key.removesuffix(name) for key, name in zip(row_keys(record_ids), record_ids, strict=True)]
    return join_lines(map(bytes.__add__, prefixes, split_lines(records)))


def carry_over(
    blocks: Iterable[bytes], current: Iterable[bytes], model: Model, scored: bytes, counts: Counter[str]
) -> Iterator[bytes]:
    """Yield the prediction lines of each block.

    Args:
        blocks: keyed lines in the order of their keys, behind them lines of what could not be read.
        current: blocks of prediction lines of the same model, in the same order.
        model: scores what has changed, or is new.
        scored: the release's time (`release.scored_at`).
        counts: `carried` is added to.
    """
    known, last = _Lines(current), dict[bytes, bytes]()
    for block in blocks:
        records = unreadable.records(block)
        if records:
            keys, features = split_records(records, model.fields)
            there = last | known.until(keys[-1], set(keys))
            marks = fingerprints(features)
            lines = [_unless_changed(there.get(key), mark) for key, mark in zip(keys, marks, strict=True)]
            changed = [place for place, line in enumerate(lines) if not line]
            if changed:
                rows = split_lines(records)
                found = prediction_lines(
                    model,
                    join_lines(record_id(rows[place]) for place in changed),
                    [record_id(keys[place]) for place in changed],
                    [features[place] for place in changed],
                    scored,
                )
                for place, line in zip(changed, split_lines(found), strict=True):
                    lines[place] = line
            counts["carried"] += len(lines) - len(changed)
            yield join_lines(lines)
            last = {keys[-1]: there[keys[-1]]} if keys[-1] in there else {}  # the same record may come once more
        if others := block[len(records) :]:
            yield others


def _unless_changed(line: bytes | None, mark: bytes) -> bytes:
    """Return a prediction line of a record with this fingerprint; empty where it is not there, or of another."""
    return line if line and line.split(SEPARATOR)[_RECORD] == mark else b""


class _Lines:
    """Ordered prediction lines, to walk through."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._keys: list[bytes] = []
        self._lines: list[bytes] = []

    def until(self, key: bytes, wanted: Container[bytes]) -> dict[bytes, bytes]:
        """Return the wanted ones of the next lines, by their row keys, up to a key."""
        found = dict[bytes, bytes]()
        while True:
            end = bisect_right(self._keys, key)
            pairs = zip(self._keys[:end], self._lines[:end], strict=True)
            found.update((name, line) for name, line in pairs if name in wanted)
            self._keys, self._lines = self._keys[end:], self._lines[end:]
            if self._keys or not (block := next(self._blocks, None)):
                return found
            self._keys, self._lines = first_fields(block, fields_of(block)), split_lines(block)
