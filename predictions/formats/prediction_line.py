"""The prediction line, from the mapper to the loader, and the cells that it becomes in HBase.

A line is `rowkey TAB prediction TAB probability TAB record TAB scored TAB error`, escaped like a record line:

- `prediction`: the predicted label or value, `\\N` for a record that could not be scored;
- `probability`: of the predicted label, `\\N` for regressors;
- `record`: the fingerprint of the record as scored (`records.fingerprints`);
- `scored`: milliseconds since 1970 (UTC) of the release in which this value was computed;
- `error`: why the record could not be scored, else `\\N`.

Each of the fields but the first and `scored` is a cell of the row, if not `\\N`; `scored` is their timestamp.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from predictions.errors import InputError
from predictions.formats.record_line import NULL, SEPARATOR, field_ends, split_columns, split_lines, unescape

FAMILY = b"p"
MAX_CELL_BYTES = 10 << 20  # HBase's default for hbase.client.keyvalue.maxsize, the key included
CELLS = tuple(b"%b:%b" % (FAMILY, name) for name in (b"prediction", b"probability", b"record", b"error"))
_NAMES = {column: column.decode().partition(":")[2] for column in CELLS}


class PredictionLine(NamedTuple):
    """A prediction line's fields, still escaped."""

    row_key: bytes
    prediction: bytes
    probability: bytes
    record: bytes
    scored: bytes
    error: bytes


FIELDS = len(PredictionLine._fields)
NOT_UNIQUE = b"the ID stands for different records"
END_OF_SCORED = SEPARATOR + NULL + b"\n"  # of a line without an error, and of no other
END_OF_UNSCORED = SEPARATOR + NULL + END_OF_SCORED  # without a time: of a line that is to be filled in
END_OF_CONFLICT = SEPARATOR + NOT_UNIQUE + b"\n"


def not_unique(line: PredictionLine) -> bytes:
    """Return the line, without its line feed, of an ID that stands for different records."""
    return SEPARATOR.join(line._replace(prediction=NULL, probability=NULL, error=NOT_UNIQUE))


def merge(lines: list[bytes]) -> bytes:
    """Return the one line, without its line feed, for lines of one row key, at least one."""
    if len(lines) == 1:
        return lines[0]
    parsed = list(map(parse_line, lines))
    if len({line.record for line in parsed}) == 1 and NOT_UNIQUE not in {line.error for line in parsed}:
        # The same record in two blocks may differ in a last digit: any choice would do that is always the same.
        return min(lines)
    return not_unique(min(parsed, key=attrgetter("record")))  # whatever the order they came in


def conflicting_keys(block: bytes) -> Iterator[bytes]:
    """Yield the row keys of IDs that stand for different records, in a block of prediction lines."""
    if END_OF_CONFLICT in block:
        for line in split_lines(block):
            if line.endswith(END_OF_CONFLICT[:-1]):
                yield parse_line(line).row_key


def parse_line(line: bytes) -> PredictionLine:
    """Read a prediction line; its line feed may be there or not.

    Raises:
        InputError: the line does not have six fields.
    """
    fields = line.rstrip(b"\n").split(SEPARATOR)
    if len(fields) != FIELDS:
        raise InputError(f"a prediction line has {FIELDS} fields, this one {len(fields)}: {line[:80]!r}")
    return PredictionLine(*fields)


def fields_of(block: bytes) -> np.ndarray:
    """Return where the fields of a block of prediction lines end, as `records.field_ends`.

    Raises:
        InputError: a line does not have six fields.
    """
    try:
        return field_ends(block, FIELDS)
    except ValueError as error:
        parse_line(split_lines(block)[error.args[0]])  # says what is wrong
        raise


def split_block(block: bytes) -> list[list[bytes]]:
    """Return the six fields of a block of prediction lines column by column; InputError where a line is none."""
    fields_of(block)
    return split_columns(block, FIELDS)


def cells(line: PredictionLine) -> dict[bytes, bytes]:
    """Return the cells (column to value) of a prediction line."""
    values = (line.prediction, line.probability, line.record, line.error)
    return {column: unescape(value) for column, value in zip(CELLS, values, strict=True) if value != NULL}


def columns(block: bytes) -> tuple[list[bytes], dict[bytes, Sequence[bytes | None]], list[int]]:
    """Return the rows of a block of prediction lines column by column; `cells` gives the same of a line.

    Args:
        block: whole lines, at least one.

    Returns:
        The row keys; by each column that any of the rows has, what it has there, None for nothing; the timestamps.

    Raises:
        InputError: a line does not have six fields, or no time.
    """
    keys, prediction, probability, record, scored, error = split_block(block)
    values = zip(CELLS, map(_values, (prediction, probability, record, error)), strict=True)
    return keys, {column: of_rows for column, of_rows in values if of_rows}, _times(keys, scored)


def _values(fields: list[bytes]) -> Sequence[bytes | None]:
    """Return a column's values; none at all where all of them are NULL."""
    if b"\\" not in b"".join(fields):
        return fields
    if fields.count(NULL) == len(fields):
        return ()
    return [None if field == NULL else unescape(field) for field in fields]


def _times(keys: list[bytes], scored: list[bytes]) -> list[int]:
    known = {}
    for text in set(scored):  # one, mostly: a release's
        if not text.isdigit():
            raise InputError(f"row {keys[scored.index(text)]!r}: {text[:80]!r} is no time in milliseconds since 1970")
        known[text] = int(text)
    return [known[text] for text in scored]


def texts(row: Mapping[bytes, bytes]) -> dict[str, str | None]:
    """Return a row's cells by their plain names (`prediction`, ...), None for a cell that is not there."""
    return {name: row[column].decode(errors="replace") if column in row else None for column, name in _NAMES.items()}
