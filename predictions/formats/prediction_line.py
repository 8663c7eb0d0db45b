"""The prediction line, which goes from the mapper to the loader, and its cells in HBase.

A line is `rowkey TAB prediction TAB probability TAB record TAB scored TAB error`, escaped like a record line:

- `prediction`: the predicted label or value, `\\N` for a record that could not be scored;
- `probability`: the probability of the predicted label, `\\N` for regressors;
- `record`: the fingerprint of the record as scored (`record_line.fingerprints`);
- `scored`: the start of the release that computed this value, in milliseconds since 1970 (UTC);
- `error`: why the record could not be scored, else `\\N`.

Each field except the row key and `scored` becomes a cell of the row, unless it is `\\N`; `scored` is the timestamp of
the cells.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from predictions.errors import InputError
from predictions.formats.record_line import NULL, SEPARATOR, field_ends, split_columns, split_lines, unescape

FAMILY = b"p"
MAX_CELL_BYTES = 10 << 20  # HBase's default for hbase.client.keyvalue.maxsize, which includes the key
CELLS = tuple(b"%b:%b" % (FAMILY, name) for name in (b"prediction", b"probability", b"record", b"error"))
_NAMES = {column: column.decode().partition(":")[2] for column in CELLS}


class PredictionLine(NamedTuple):
    """The fields of a prediction line, still escaped."""

    row_key: bytes
    prediction: bytes
    probability: bytes
    record: bytes
    scored: bytes
    error: bytes


FIELDS = len(PredictionLine._fields)
NOT_UNIQUE = b"the ID stands for different records"
END_OF_SCORED = SEPARATOR + NULL + b"\n"  # every line without an error ends like this, and no other line does
END_OF_CONFLICT = SEPARATOR + NOT_UNIQUE + b"\n"


def not_unique(line: PredictionLine) -> bytes:
    """Return the line (without line feed) that says that its ID stands for different records."""
    return SEPARATOR.join(line._replace(prediction=NULL, probability=NULL, error=NOT_UNIQUE))


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


def parse_line(line: bytes) -> PredictionLine:
    """Parse a prediction line, with or without its line feed.

    Raises:
        InputError: the line does not have six fields.
    """
    fields = line.rstrip(b"\n").split(SEPARATOR)
    if len(fields) != FIELDS:
        raise InputError(f"a prediction line has {FIELDS} fields, but this one has {len(fields)}: {line[:80]!r}")
    return PredictionLine(*fields)


def fields_of(block: bytes) -> np.ndarray:
    """Return where the fields of a block of prediction lines end, as `record_line.field_ends` does.

    Raises:
        InputError: a line does not have six fields.
    """
    try:
        return field_ends(block, FIELDS)
    except ValueError as error:
        parse_line(split_lines(block)[error.args[0]])  # raises the error that shows the line
        raise


def split_block(block: bytes) -> list[list[bytes]]:
    """Return the six columns of a block of prediction lines; InputError if a line does not have six fields."""
    fields_of(block)
    return split_columns(block, FIELDS)


def cells(line: PredictionLine) -> dict[bytes, bytes]:
    """Return the cells of a prediction line, as a dictionary from column to value."""
    values = (line.prediction, line.probability, line.record, line.error)
    return {column: unescape(value) for column, value in zip(CELLS, values, strict=True) if value != NULL}


def columns(block: bytes) -> tuple[list[bytes], dict[bytes, Sequence[bytes | None]], list[int]]:
    """Return the cells of a block of prediction lines, column by column; `cells` does the same for a single line.

    Args:
        block: whole lines, at least one.

    Returns:
        The row keys; for each column that at least one row has, the value in each row (None if the row has no such
        cell); the timestamps, in milliseconds since 1970.

    Raises:
        InputError: a line does not have six fields, or its time is not a number.
    """
    keys, prediction, probability, record, scored, error = split_block(block)
    pairs = zip(CELLS, map(_values, (prediction, probability, record, error)), strict=True)
    return keys, {column: values for column, values in pairs if values}, _times(keys, scored)


def _values(fields: list[bytes]) -> Sequence[bytes | None]:
    """Return the values of a column, None for NULL; an empty sequence if all of them are NULL."""
    if b"\\" not in b"".join(fields):
        return fields
    if fields.count(NULL) == len(fields):
        return ()
    return [None if field == NULL else unescape(field) for field in fields]


def _times(keys: list[bytes], scored: list[bytes]) -> list[int]:
    times = {}
    for text in set(scored):  # mostly a single text: lines of one release have the same time
        if not text.isdigit():
            key = keys[scored.index(text)]
            raise InputError(f"row {key!r}: {text[:80]!r} is not a time in milliseconds since 1970")
        times[text] = int(text)
    return [times[text] for text in scored]


def texts(row: Mapping[bytes, bytes]) -> dict[str, str | None]:
    """Return the cells of a row as text, by plain name (`prediction`, ...); None for a cell that the row lacks."""
    return {name: row[column].decode(errors="replace") if column in row else None for column, name in _NAMES.items()}
