"""The prediction line, which goes from the mapper to the loader, and its cells in HBase.

A line is `rowkey TAB prediction TAB probability TAB ... TAB record TAB scored TAB error`, escaped like a record line:

- `prediction`: the predicted label or value, `\\N` for a record that could not be scored;
- `probability`: the probability of the predicted label, `\\N` for regressors;
- then further cells, if the model has further outputs; all lines of a release have the same;
- `record`: the fingerprint of the record as scored (`record_line.fingerprints`);
- `scored`: the start of the release that computed this value, in milliseconds since 1970 (UTC);
- `error`: why the record could not be scored, else `\\N`.

Each field except the row key and `scored` becomes a cell of the row, unless it is `\\N`; `scored` is the timestamp of
the cells. The manifest of the release has the columns of the fields between the row key and `record`; `COLUMNS` is the
default. What only passes lines on takes them with any columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from predictions.errors import InputError
from predictions.formats.byte_strings import NONE, ByteStrings
from predictions.formats.record_line import (
    BLOCK_BYTES,
    NULL,
    SEPARATOR,
    field_ends,
    split_columns,
    split_lines,
    unescape,
)

FAMILY = b"p"
MAX_TIME = (1 << 63) - 1  # HBase stores times as signed 64-bit numbers
MAX_CELL_BYTES = 10 << 20  # HBase's default for hbase.client.keyvalue.maxsize, which includes the key

# Qualifiers, and the first part of further ones: `probability:CLASS`, `prediction:OUTPUT`.
PREDICTION, PROBABILITY, RECORD, ERROR = "prediction", "probability", "record", "error"
PROBABILITIES = "probabilities"
CONTRIBUTIONS = "contributions"
COLUMNS = (PREDICTION, PROBABILITY)
AFTER = 3  # fields after the cells: record, scored, error
_MANY = 20  # columns
_ESCAPES = {"%": "%25", ":": "%3A"}


class PredictionLine(NamedTuple):
    """The fields of a prediction line, still escaped; `cells` are those between the row key and `record`."""

    row_key: bytes
    cells: tuple[bytes, ...]
    record: bytes
    scored: bytes
    error: bytes

    @property
    def prediction(self) -> bytes:
        """The first cell."""
        return self.cells[0]

    @property
    def probability(self) -> bytes:
        """The second cell."""
        return self.cells[1]

    def join(self) -> bytes:
        """Return the line, without a line feed."""
        return SEPARATOR.join((self.row_key, *self.cells, self.record, self.scored, self.error))


FIELDS = 1 + len(COLUMNS) + AFTER  # the fewest that a line has
NOT_UNIQUE = b"the ID stands for different records"
END_OF_SCORED = SEPARATOR + NULL + b"\n"  # every line without an error ends like this, and no other line does
END_OF_CONFLICT = SEPARATOR + NOT_UNIQUE + b"\n"


def qualifier(*names: str) -> str:
    """Return a column's name, with colons between its parts; in a part, `%` and `:` become `%25` and `%3A`."""
    return ":".join(name.replace("%", _ESCAPES["%"]).replace(":", _ESCAPES[":"]) for name in names)


def names_of(column: str) -> tuple[str, ...]:
    """Return the parts of a column's name; the inverse of `qualifier`."""
    return tuple(
        name.replace(_ESCAPES[":"], ":").replace(_ESCAPES["%"], "%") if "%" in name else name
        for name in column.split(":")
    )


@dataclass(frozen=True)
class Place:
    """Where a label's cells are among the cells of a line: their indexes.

    Args:
        prediction, probability: of these cells.
        error: of the cell that says why this label failed; None if the line's own `error` does.
    """

    prediction: int = 0
    probability: int = 1
    error: int | None = None


FIRST = Place()  # of the only label


def place_of(columns: Sequence[str], label: str | None) -> Place:
    """Return where a label's cells are.

    Args:
        columns: the columns of the release.
        label: the label; None if the release has only one.
    """
    prefix = () if label is None else (label,)
    prediction, probability = (columns.index(qualifier(*prefix, name)) for name in COLUMNS)
    return Place(prediction, probability, None if label is None else columns.index(qualifier(label, ERROR)))


def block_bytes(columns: int) -> int:
    """Return the size of a block of record lines that get prediction lines with so many columns.

    In memory, a cell takes far more than a record's few bytes. So of many columns, fewer records are scored at once.
    """
    return BLOCK_BYTES * _MANY // max(_MANY, columns)


def not_unique(line: PredictionLine) -> bytes:
    """Return the line (without line feed) that says that its ID stands for different records."""
    return line._replace(cells=(NULL,) * len(line.cells), error=NOT_UNIQUE).join()


def merge(lines: list[bytes]) -> bytes:
    """Merge the lines of one row key, at least one, into a single line (all without line feeds)."""
    if len(lines) == 1:
        return lines[0]
    parsed = list(map(parse_line, lines))
    if len({line.record for line in parsed}) == 1 and NOT_UNIQUE not in {line.error for line in parsed}:
        # The same record scored in two blocks may differ in the last digit. Which line is kept does not matter, as long
        # as it is always the same one.
        return min(lines)
    return not_unique(min(parsed, key=attrgetter("record")))  # the result must not depend on the order of the lines


def conflicting_keys(block: bytes) -> Iterator[bytes]:
    """Yield the row key of each ID that stands for different records, in a block of prediction lines."""
    if END_OF_CONFLICT in block:
        for line in split_lines(block):
            if line.endswith(END_OF_CONFLICT[:-1]):
                yield parse_line(line).row_key


def parse_line(line: bytes, fields: int | None = None) -> PredictionLine:
    """Parse a prediction line, with or without its line feed.

    Args:
        line: the line.
        fields: how many fields it must have; None: `FIELDS` or more.

    Raises:
        InputError: the line has another number of fields.
    """
    row_key, *cells = line.rstrip(b"\n").split(SEPARATOR)
    found = 1 + len(cells)
    if found < FIELDS if fields is None else found != fields:
        raise InputError(f"a prediction line has {fields or FIELDS} fields, but this one has {found}: {line[:80]!r}")
    return PredictionLine(row_key, tuple(cells[:-AFTER]), *cells[-AFTER:])


def fields_of(block: bytes, fields: int | None = None) -> np.ndarray:
    """Return where the fields of a block of prediction lines end, as `record_line.field_ends` does.

    Args:
        block: whole lines, at least one.
        fields: how many fields a line must have; None: as many as the first one, but no fewer than `FIELDS`.

    Raises:
        InputError: a line has another number of fields.
    """
    if fields is None:
        fields = max(FIELDS, block.count(SEPARATOR, 0, block.find(b"\n")) + 1)
    try:
        return field_ends(block, fields)
    except ValueError as error:
        parse_line(split_lines(block)[error.args[0]], fields)  # raises the error that shows the line
        raise


def split_block(block: bytes, fields: int | None = None) -> list[list[bytes]]:
    """Return the columns of a block of prediction lines; arguments and errors are those of `fields_of`."""
    return split_columns(block, fields_of(block, fields).shape[1])


def cell_column(name: str) -> bytes:
    """Return the column of a cell in HBase, with its family, for a column's name."""
    return b"%b:%b" % (FAMILY, name.encode())


@lru_cache
def _cell_columns(columns: tuple[str, ...]) -> tuple[bytes, ...]:
    """Return the columns of a line's cells, with their family: the given ones, `record` and `error`."""
    return tuple(map(cell_column, (*columns, RECORD, ERROR)))


def cells(line: PredictionLine, columns: Sequence[str] = COLUMNS) -> dict[bytes, bytes]:
    """Return the cells of a prediction line, as a dictionary from column to value.

    Args:
        line: the line.
        columns: the columns of its release.

    Raises:
        InputError: the line has cells of other columns.
    """
    if len(line.cells) != len(columns):
        parse_line(line.join(), 1 + len(columns) + AFTER)  # raises the error that shows the line
    pairs = zip(_cell_columns(tuple(columns)), (*line.cells, line.record, line.error), strict=True)
    return {column: unescape(value) for column, value in pairs if value != NULL}


def columns(block: bytes, names: Sequence[str] = COLUMNS) -> tuple[ByteStrings, dict[bytes, ByteStrings], np.ndarray]:
    """Return the cells of a block of prediction lines, column by column; `cells` does the same for a single line.

    Args:
        block: whole lines, at least one.
        names: the columns of their release.

    Returns:
        The row keys; for each column that at least one row has, the value in each row (missing if the row has no such
        cell); the timestamps, in milliseconds since 1970 (shape: lines; int64).

    Raises:
        InputError: a line has cells of other columns, or its time is not a number that HBase can store.
    """
    ends = fields_of(block, 1 + len(names) + AFTER)
    starts = np.concatenate(([0], ends.ravel()[:-1] + 1)).reshape(ends.shape)
    data, sizes = np.frombuffer(block, np.uint8), ends - starts
    is_null = sizes == len(NULL)
    is_null[:, 0] = False  # a row key is never NULL
    is_null[is_null] = (data[starts[is_null]] == NULL[0]) & (data[starts[is_null] + 1] == NULL[1])
    sizes[is_null] = NONE
    if block.count(b"\\") > np.count_nonzero(is_null):
        data = _unescaped(block, starts, sizes)
    key, *cells, record, scored, error = (
        ByteStrings(data, starts[:, column], sizes[:, column]) for column in range(ends.shape[1])
    )
    pairs = zip(_cell_columns(tuple(names)), (*cells, record, error), strict=True)
    return key, {name: values for name, values in pairs if values.sizes.max() != NONE}, _times(key, scored)


def _unescaped(block: bytes, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return a buffer that also has the fields with escapes as they are without; change their starts and sizes.

    Row keys stay escaped.
    """
    pieces, size = [block], len(block)
    backslashes = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\\"))
    escaped = np.zeros(starts.shape, bool)
    escaped.flat[starts.ravel().searchsorted(backslashes, "right") - 1] = True
    escaped[:, 0] = False
    for field in zip(*np.nonzero(escaped & (sizes != NONE)), strict=True):
        value = unescape(block[starts[field] : starts[field] + sizes[field]])
        starts[field], sizes[field] = size, len(value)
        pieces.append(value)
        size += len(value)
    return np.frombuffer(b"".join(pieces), np.uint8)


def _times(keys: ByteStrings, scored: ByteStrings) -> np.ndarray:
    # Lines of one release have the same time.
    times, size = np.empty(len(scored.sizes), np.int64), scored.sizes[0]
    texts = scored.padded(size)
    same = (scored.sizes == size) & (texts == texts[0]).all(axis=1)
    for row in [0, *np.flatnonzero(~same)]:
        text = scored.value(row)
        if text is None or not text.isdigit() or int(text) > MAX_TIME:
            raise InputError(
                f"row {keys.value(row)!r}: {(text or NULL)[:80]!r} is not a time in milliseconds since 1970"
            )
        times[row] = int(text)
    times[same] = times[0]
    return times
