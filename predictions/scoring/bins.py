"""Read the features of record lines into the bins of a compiled model, and score them without scikit-learn.

Most columns repeat few values. The first time that a field comes, its column's decoder reads it (`features.py`), so
that there is one definition of what a field means. From then on its bin is looked up: a field of up to seven bytes is
one integer, and numpy looks up those of a whole block at once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from predictions.formats.record_line import NULL, Column, field_ends
from predictions.scoring.compiled import Bins, CompiledModel, NumberColumn
from predictions.scoring.features import ENTRY_BYTES, MEMO_BYTES, TOO_LARGE, decoder_for

_SHORT = 7  # bytes; a word has one more, for the length
_WORD = np.dtype("<u8")
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(_SHORT + 1)] + [0], dtype=_WORD)
_LENGTHS = np.arange(_SHORT + 2, dtype=_WORD) << np.uint64(8 * _SHORT)
_LONG = _LENGTHS[-1]  # the word of every field that is longer
_NOTHING = np.uint64(2**64 - 1)  # no field's word
_MAX_WORDS = 2048  # in a table, which then has a million slots, 16 MB
_TRIES = 64
_MANY = 1 / 64  # of a block's fields: if more are not in the table, it is made anew

Words = np.ndarray[Any, np.dtype[np.uint64]]


class CompiledPredictor:
    """Score with a compiled model.

    Args:
        compiled: the compiled model.
        features: its columns' names and types.
    """

    def __init__(self, compiled: CompiledModel, features: Sequence[Column]) -> None:
        self._compiled = compiled
        self._columns = [_BinReader(compiled, index, column) for index, column in enumerate(features)]

    def predict(self, block: bytes) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """See `predictions.scoring.model.Predictor`."""
        ends = np.ascontiguousarray(field_ends(block, len(self._columns) + 2).T)
        starts = ends[:-2] + 1
        words = _words(block, starts, ends[1:-1] - starts)
        bad_rows: dict[int, str] = {}
        bins = [
            column.read(block, column_starts, column_ends, column_words, bad_rows)
            for column, column_starts, column_ends, column_words in zip(
                self._columns, starts, ends[1:-1], words, strict=True
            )
        ]
        return self._compiled.predict(bins), bad_rows

    def one_thread(self) -> AbstractContextManager[object]:
        """See `predictions.scoring.model.Predictor`."""
        return nullcontext()  # numpy starts threads for products of matrices alone


def _words(block: bytes, starts: Bins, lengths: Bins) -> Words:
    """Return a word for each field: its bytes and its length if it is short, else `_LONG`."""
    padded = block + bytes(_WORD.itemsize)
    every_word = np.ndarray((len(block) + 1,), dtype=_WORD, buffer=padded, strides=(1,))  # from each byte on
    kinds = np.minimum(lengths, _SHORT + 1)
    return (every_word[starts] & _MASKS.take(kinds)) | _LENGTHS.take(kinds)


class _Table:
    """Bins by word, in an array with at most one word a slot (multiply-shift hashing).

    M. Dietzfelbinger, T. Hagerup, J. Katajainen, M. Penttonen, "A reliable randomized algorithm for the closest-pair
    problem", Journal of Algorithms 25 (1997).

    Args:
        words: distinct words.
        bins: their bins.
    """

    def __init__(self, words: Words, bins: Bins) -> None:
        self._multiplier, self._shift, slots = _perfect_hash(words)
        self._words = np.full(1 << (64 - int(self._shift)), _NOTHING)
        self._bins = np.zeros(len(self._words), dtype=np.intp)
        self._words[slots], self._bins[slots] = words, bins

    def look_up(self, words: Words) -> tuple[Bins, Bins]:
        """Return the bins of words, and the indexes of those that are not in the table."""
        slots = _hash(words, self._multiplier, self._shift)
        return self._bins.take(slots, mode="clip"), np.flatnonzero(self._words.take(slots, mode="clip") != words)


def _hash(words: Words, multiplier: np.uint64, shift: np.uint64) -> Bins:
    return ((words * multiplier) >> shift).view(np.intp)


def _perfect_hash(words: Words) -> tuple[np.uint64, np.uint64, Bins]:
    """Return a multiplier and a shift with which no two words have the same slot, and the slots."""
    random = np.random.default_rng(0)
    slots = 64
    while len(words) ** 2 > 8 * slots:  # with fewer, more than four pairs would collide on average
        slots *= 2
    while True:
        shift = np.uint64(64 - slots.bit_length() + 1)
        for multiplier in random.integers(0, 1 << 63, _TRIES, dtype=np.uint64) * np.uint64(2) + np.uint64(1):
            hashes = _hash(words, multiplier, shift)
            if len(np.unique(hashes)) == len(words):
                return multiplier, shift, hashes
        slots *= 2


class _BinReader:
    """Read the fields of one column into bins.

    Args:
        compiled: the compiled model.
        index: the column's index.
        column: its name and type.
    """

    def __init__(self, compiled: CompiledModel, index: int, column: Column) -> None:
        self._compiled = compiled
        self._index = index
        self._name = column.name
        self._decoder = decoder_for(column)
        self._start()

    def _start(self) -> None:
        self._bins: dict[bytes, int] = {}
        self._bad: dict[bytes, str] = {}  # fields that are not a value of the column's type, with the reason
        self._bytes = 0
        self._table = _Table(np.empty(0, dtype=_WORD), np.empty(0, dtype=np.intp))

    def read(self, block: bytes, starts: Bins, ends: Bins, words: Words, bad_rows: dict[int, str]) -> Bins:
        """Return the bins of a block's fields, and add the rows with a bad value to `bad_rows`.

        Args:
            block: the lines.
            starts, ends: where the fields are in the block.
            words: the fields' words.
            bad_rows: to add to.
        """
        if self._bytes > MEMO_BYTES:
            self._start()
        bins, others = self._table.look_up(words)
        if len(others):
            fields = [
                block[start:end] for start, end in zip(starts[others].tolist(), ends[others].tolist(), strict=True)
            ]
            bins[others] = self._bins_of(fields)
            if self._bad:
                for row, field in zip(others.tolist(), fields, strict=True):
                    if field in self._bad:
                        bad_rows.setdefault(row, f"{self._name}: {self._bad[field]}")
            if (words[others] != _LONG).sum() > _MANY * len(words):
                self._make_table()
        return bins

    def _bins_of(self, fields: Sequence[bytes]) -> Bins:
        if new := list(set(fields).difference(self._bins)):
            self._decode(new)
        return np.fromiter(map(self._bins.__getitem__, fields), np.intp, len(fields))

    def _decode(self, fields: list[bytes]) -> None:
        values = list(map(self._value_of, fields))
        column = self._compiled.columns[self._index]
        if isinstance(column, NumberColumn):
            numbers = np.array(values)
            # scikit-learn would raise, and the whole block would have no predictions.
            out_of_range = (numbers < column.lowest) | (numbers > column.highest)
            self._bad.update((fields[index], TOO_LARGE) for index in np.flatnonzero(out_of_range).tolist())
            bins = self._compiled.bins_of_numbers(self._index, np.where(out_of_range, np.nan, numbers))
        else:
            bins = self._compiled.bins_of_categories(self._index, values)
        self._bins.update(zip(fields, bins.tolist(), strict=True))
        self._bytes += sum(map(len, fields)) + len(fields) * ENTRY_BYTES

    def _value_of(self, field: bytes) -> Any:
        """Return a field's value; a bad value counts as missing."""
        if field == NULL:
            return np.nan
        try:
            return self._decoder.decode(field)
        except ValueError as error:
            self._bad[field] = str(error)
            return np.nan

    def _make_table(self) -> None:
        if len(self._bins) > _MAX_WORDS:
            return  # the table would be too large, and no faster than looking up field by field
        fields = [field for field in self._bins if len(field) <= _SHORT and field not in self._bad]
        block = b"\t".join(fields)
        lengths = np.fromiter(map(len, fields), np.intp, len(fields))
        words = _words(block, np.cumsum(lengths + 1) - lengths - 1, lengths)
        self._table = _Table(words, self._bins_of(fields))
