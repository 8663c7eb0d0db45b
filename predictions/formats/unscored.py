"""Unscored lines: with `--changed`, the mapper writes one for each record, and the reducer decides whether to score it.

They have the fields of a prediction line. In place of the second cell, the probability, are the record's feature
fields as they stand in the record line, tabs included, escaped once more so that they are one field; all other cells
are `\\N`:

    rowkey TAB \\N TAB features TAB ... TAB fingerprint TAB \\N TAB \\N

No other line has neither a time nor an error.
"""

from collections.abc import Iterable
from itertools import repeat

import numpy as np

from predictions.formats.prediction_line import COLUMNS, END_OF_SCORED
from predictions.formats.record_line import (
    NULL,
    SEPARATOR,
    feature_fields,
    fingerprints,
    join_lines,
    split_lines,
    unescape,
    write_rows,
)
from predictions.formats.row_key import record_id, row_keys

END_OF_UNSCORED = SEPARATOR + NULL + END_OF_SCORED
FEATURES = 1  # the index of their cell


def unscored_lines(
    block: bytes, ends: np.ndarray, record_ids: list[bytes], cells: int = len(COLUMNS), labels: int = 1
) -> bytes:
    """Return the unscored lines of a block of record lines, at least one.

    Args:
        block: whole record lines.
        ends: where their fields end (`record_line.field_ends`).
        record_ids: their IDs.
        cells: the number of columns of the release.
        labels: the number of labels in a record line.
    """
    features = list(feature_fields(block, ends, labels))
    # As `escape`, for the whole block: escaped fields with tabs between them have no other bytes to escape. Only lines
    # that no export writes have carriage returns, at which Streaming would end the mapper's lines.
    escaped = join_lines(features).replace(b"\\", b"\\\\").replace(SEPARATOR, b"\\t").replace(b"\r", b"\\r")
    more = [repeat(NULL)] * (cells - len(COLUMNS))
    columns = (row_keys(record_ids), repeat(NULL), split_lines(escaped), *more, fingerprints(features), repeat(NULL))
    return write_rows(zip(*columns, repeat(NULL)))


def record_lines(rows: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the record lines of unscored lines, given by their row keys and features; their labels are NULL."""
    return b"".join(b"%b\t%b\t%b\n" % (record_id(key), unescape(features), NULL) for key, features in rows)
