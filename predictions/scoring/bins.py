"""Read the features of record lines into the bins of a compiled model, and score them without scikit-learn.

Most columns repeat few values. The first time that a field comes, its column's decoder reads it (`features.py`), so
that there is one definition of what a field means. From then on its bin is looked up: a field of up to seven bytes is
one integer, and numpy looks up those of a whole block at once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from predictions.formats.record_line import NULL, Column
from predictions.scoring.compiled import Bins, CompiledModel, NumberColumn
from predictions.scoring.features import ENTRY_BYTES, MEMO_BYTES, TOO_LARGE, decoder_for

_SHORT = 7  # bytes; a word has one more, for the length
_WORD = np.dtype("<u8")
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(_SHORT + 1)] + [0], dtype=_WORD)
_LENGTHS = np.arange(_SHORT + 2, dtype=_WORD) << np.uint64(8 * _SHORT)
_LONG = _LENGTHS[-1]  # the word of every field that is longer
_NOTHING = np.uint64(2**64 - 1)  # no field's word
_MAX_WORDS = 2048  # in a table, which then has a million slots of two bytes
_MAX_ALL_WORDS = 1 << 16  # in the tables of all columns, so that they take no more than 64 MB
_TRIES = 64
_TABLE_ROWS = 1000  # of a block: for a smaller one, a table is not worth making
_GROWTH = 1.2  # a table is made anew once it could have so many times its words

Words = np.ndarray[Any, np.dtype[np.uint64]]


class CompiledPredictor:
    """Score with a compiled model.

    Args:
        compiled: the compiled model.
        features: its columns' names and types.
        words: the words of blocks, which the models of several labels share.
    """

    def __init__(self, compiled: CompiledModel, features: Sequence[Column], words: "BlockWords | None" = None) -> None:
        self._compiled = compiled
        self._words = words or BlockWords(len(features))
        max_words = min(_MAX_WORDS, _MAX_ALL_WORDS // len(features))
        self._columns = [_BinReader(compiled, index, column, max_words) for index, column in enumerate(features)]

    def predict(self, block: bytes, ends: np.ndarray) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """See `predictions.scoring.model.Predictor`."""
        bins, bad_rows = self._bins(block, ends)
        return self._compiled.predict(bins), bad_rows

    def contributions(self, block: bytes, ends: np.ndarray, outputs: np.ndarray) -> np.ndarray[Any, Any]:
        """See `predictions.scoring.model.Predictor`."""
        return self._compiled.contributions(self._bins(block, ends)[0], outputs)

    def _bins(self, block: bytes, ends: np.ndarray) -> tuple[list[Bins], dict[int, str]]:
        """Return the bins of each column, and for each row with a bad value the column and the reason."""
        starts, ends, words = self._words.of(block, ends)
        bad_rows: dict[int, str] = {}
        too_large: dict[int, str] = {}
        bins = [
            column.read(block, column_starts, column_ends, column_words, bad_rows, too_large)
            for column, column_starts, column_ends, column_words in zip(self._columns, starts, ends, words, strict=True)
        ]
        return bins, too_large | bad_rows

    def one_thread(self) -> AbstractContextManager[object]:
        """See `predictions.scoring.model.Predictor`."""
        return nullcontext()  # numpy starts threads for products of matrices alone


class BlockWords:
    """The words of the features of a block, and where the features are.

    Args:
        features: the number of features, which follow the ID.
    """

    def __init__(self, features: int) -> None:
        self._features = features

    def of(self, block: bytes, ends: np.ndarray) -> tuple[Bins, Bins, Words]:
        """Return where the features begin and end, and their words (shape of each: features, rows).

        Args:
            block: whole record lines.
            ends: where their fields end (`record_line.field_ends`).
        """
        by_column = np.ascontiguousarray(ends[:, : self._features + 1].T)
        starts, stops = by_column[:-1] + 1, by_column[1:]
        return starts, stops, _words(block, starts, stops - starts)


class SharedWords(BlockWords):
    """The same for the models of several labels: the words of a block are made once."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self._last: tuple[bytes, tuple[Bins, Bins, Words]] | None = None

    def of(self, block: bytes, ends: np.ndarray) -> tuple[Bins, Bins, Words]:
        """See `BlockWords`."""
        last = self._last  # read once, since another thread may replace it
        if not last or last[0] is not block:
            last = self._last = block, super().of(block, ends)
        return last[1]


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
        # Each slot has the index of a word. The last one is of no word, and of every slot without one.
        self.words = np.append(words, _NOTHING)
        self._bins = np.append(bins, 0)
        self._slots = np.full(1 << (64 - int(self._shift)), len(words), dtype=np.int16)
        self._slots[slots] = np.arange(len(words))

    def look_up(self, words: Words) -> tuple[Bins, Bins]:
        """Return the bins of words, and the indexes of those that are not in the table."""
        indexes = self._slots.take(_hash(words, self._multiplier, self._shift), mode="clip")
        return self._bins.take(indexes, mode="clip"), np.flatnonzero(self.words.take(indexes, mode="clip") != words)


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


class _Known:
    """What is known of a column's fields. Threads share it, so nothing is ever removed: a new one replaces it."""

    def __init__(self) -> None:
        self.bins: dict[bytes, int] = {}
        self.bad: dict[bytes, str] = {}  # fields that are not a value of the column's type, with the reason
        self.too_large: set[bytes] = set()  # numbers on which scikit-learn raises
        self.short = 0  # number of fields that a table can have
        self.bytes = 0
        self.table = _Table(np.empty(0, dtype=_WORD), np.empty(0, dtype=np.intp))

    def in_table(self, field: bytes) -> bool:
        """Return whether a table can have a field."""
        return len(field) <= _SHORT and field not in self.bad and field not in self.too_large


class _BinReader:
    """Read the fields of one column into bins.

    Args:
        compiled: the compiled model.
        index: the column's index.
        column: its name and type.
        max_words: number of fields in its table, at most; a column with more values is looked up field by field.
    """

    def __init__(self, compiled: CompiledModel, index: int, column: Column, max_words: int) -> None:
        self._compiled = compiled
        self._index = index
        self._name = column.name
        self._decoder = decoder_for(column)
        self._max_words = max_words
        self._known = _Known()

    def read(
        self,
        block: bytes,
        starts: Bins,
        ends: Bins,
        words: Words,
        bad_rows: dict[int, str],
        too_large: dict[int, str],
    ) -> Bins:
        """Return the bins of a block's fields.

        Args:
            block: the lines.
            starts, ends: where the fields are in the block.
            words: the fields' words.
            bad_rows: to add the rows to whose field is not a value of the column's type, with the reason.
            too_large: to add the rows to whose number scikit-learn refuses.
        """
        known = self._known
        if known.bytes > MEMO_BYTES:
            known = self._known = _Known()
        bins, others = known.table.look_up(words)
        if len(others):
            rows, bounds = others.tolist(), zip(starts[others].tolist(), ends[others].tolist(), strict=True)
            fields = [block[start:end] for start, end in bounds]
            if new := list(set(fields).difference(known.bins)):
                self._decode(new, known)
            bins[others] = np.fromiter(map(known.bins.__getitem__, fields), np.intp, len(fields))
            if known.bad or known.too_large:
                for row, field in zip(rows, fields, strict=True):
                    if field in known.bad:
                        bad_rows.setdefault(row, f"{self._name}: {known.bad[field]}")
                    elif field in known.too_large:
                        too_large.setdefault(row, f"{self._name}: {TOO_LARGE}")
            if len(words) >= _TABLE_ROWS and _GROWTH * len(known.table.words) < known.short <= self._max_words:
                _make_table(known)
        return bins

    def _decode(self, fields: list[bytes], known: _Known) -> None:
        values = [self._value_of(field, known) for field in fields]
        column = self._compiled.columns[self._index]
        if isinstance(column, NumberColumn):
            numbers = np.array(values)
            # scikit-learn would raise, and the whole block would have no predictions.
            is_too_large = (numbers < column.lowest) | (numbers > column.highest)
            known.too_large.update(fields[index] for index in np.flatnonzero(is_too_large).tolist())
            bins = self._compiled.bins_of_numbers(self._index, np.where(is_too_large, np.nan, numbers))
        else:
            bins = self._compiled.bins_of_categories(self._index, values)
        # Last, since another thread takes a field with a bin for one whose faults are known.
        known.bins.update(zip(fields, bins.tolist(), strict=True))
        known.short += sum(map(known.in_table, fields))
        known.bytes += sum(map(len, fields)) + len(fields) * ENTRY_BYTES

    def _value_of(self, field: bytes, known: _Known) -> Any:
        """Return a field's value; a bad value counts as missing."""
        if field == NULL:
            return np.nan
        try:
            return self._decoder.decode(field)
        except ValueError as error:
            known.bad[field] = str(error)
            return np.nan


def _make_table(known: _Known) -> None:
    fields = list(filter(known.in_table, list(known.bins)))
    lengths = np.fromiter(map(len, fields), np.intp, len(fields))
    words = _words(b"\t".join(fields), np.cumsum(lengths + 1) - lengths - 1, lengths)
    bins = np.fromiter(map(known.bins.__getitem__, fields), np.intp, len(fields))
    known.table = _Table(words, bins)
