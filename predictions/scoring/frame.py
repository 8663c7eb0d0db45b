"""Read the features of record lines into the data frame that a model takes."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from predictions.formats.manifest import FeatureType
from predictions.formats.record_line import NULL, SEPARATOR, Column, split_columns
from predictions.scoring.dtypes import reader_for

_LAST_TEXT = "1970-01-01"
_SIGNS = (ord("+"), ord("-"))


class FrameReader:
    """Read the features of record lines into data frames with their names.

    Args:
        columns: the features' names and types, in the order of the record line.
        schema: the columns of the frame, in order. By default they are the features, and a frame holds float64 for
            numbers and dates, objects for categories, and NaN for missing values.
    """

    def __init__(self, columns: Sequence[Column], schema: Sequence[FeatureType] = ()) -> None:
        self.columns = columns
        self._order = [feature.name for feature in schema] or [column.name for column in columns]
        self._names = [str(index) for index in range(len(columns))]  # the names that pandas sees must be distinct
        types = {feature.name: feature for feature in schema}
        self._readers = [reader_for(column, types.get(column.name)) for column in columns]
        self._dtypes = {
            name: reader.parsed or "category" for name, reader in zip(self._names, self._readers, strict=True)
        }
        self._has_integers = any(reader.parsed == "int64" for reader in self._readers)
        # In a number column, pandas reads nothing but "True" and "False" as numbers; in a text column, it makes nothing
        # but digits number categories. This line, appended to each block, is neither and makes it keep to the types.
        values = (b"0" if reader.parsed else _LAST_TEXT.encode() for reader in self._readers)
        self._last_line = SEPARATOR.join([NULL, *values])

    def read(self, block: bytes, labels: int = 1) -> tuple[pd.DataFrame, dict[int, str]]:
        """Decode the features of one block.

        Args:
            block: whole record lines, at least one, whose fields have been counted.
            labels: the number of labels in a line.

        Returns:
            The frame, and for each row with a bad value the row's index, the column and the reason. Bad values count
            as missing.
        """
        # pandas' parser is three times faster than ours, but gives up at the first bad value.
        frame = self._parse(block, labels)
        if frame is not None:
            return frame, {}
        fields = split_columns(block, 1 + len(self.columns) + labels)
        return self._decode(fields[1 : 1 + len(self.columns)])

    def _parse(self, block: bytes, labels: int = 1) -> pd.DataFrame | None:
        if self._has_integers and _has_exponent(block):  # pandas reads 1e3 as an integer, by way of a float
            return None
        try:
            parsed = pd.read_csv(
                io.BytesIO(block + SEPARATOR.join([self._last_line, *[NULL] * labels]) + b"\n"),
                sep="\t",
                header=None,
                names=["id", *self._names, *(f"label {number}" for number in range(labels))],
                usecols=self._names,
                dtype=self._dtypes,
                na_values=["\\N"],
                keep_default_na=False,
                quoting=csv.QUOTE_NONE,
                lineterminator="\n",
                skip_blank_lines=False,
                engine="c",
                low_memory=False,  # a block is small: parsed in one piece, it is faster
            )
            arrays = []
            for name, reader in zip(self._names, self._readers, strict=True):
                values = parsed[name].iloc[:-1]
                if reader.parsed:
                    arrays.append(reader.finish(values))
                    continue
                texts, codes = values.cat.categories.tolist(), values.cat.codes.to_numpy()
                last = int(parsed[name].cat.codes.to_numpy()[-1])
                if not reader.takes_null and (codes == -1).any():
                    return None
                if not (codes == last).any():
                    texts.remove(_LAST_TEXT)  # which need not be a value of the column
                    codes = np.where(codes > last, codes - 1, codes)
                decoded = [reader.decoder.decode(text.encode()) for text in texts]
                # The code of a missing value is -1, so it selects the last element.
                arrays.append(reader.array([*decoded, reader.decoder.missing]).take(codes))
        except (ValueError, OverflowError):  # the latter of integers of more than 64 bits
            return None
        return self._frame(arrays)

    def _decode(self, fields: Sequence[Sequence[bytes]]) -> tuple[pd.DataFrame, dict[int, str]]:
        arrays = []
        bad_rows: dict[int, str] = {}
        for column, reader, column_fields in zip(self.columns, self._readers, fields, strict=True):
            decoder = reader.decoder
            decoder.forget()
            arrays.append(reader.array(list(map(decoder.__getitem__, column_fields))))
            if decoder.bad:
                for row, field in enumerate(column_fields):
                    if field in decoder.bad:
                        bad_rows.setdefault(row, f"{column.name}: {decoder.bad[field]}")
        return self._frame(arrays), bad_rows

    def _frame(self, arrays: Sequence[Any]) -> pd.DataFrame:
        columns = {
            column.name: pd.Series(array, dtype=object if array.dtype == np.dtype(object) else None, copy=False)
            for column, array in zip(self.columns, arrays, strict=True)
        }
        return pd.DataFrame({name: columns[name] for name in self._order}, copy=False)


class SharedReader(FrameReader):
    """A reader for the models of several labels: it reads a block once, and each model gets a copy of the frame."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self._last: tuple[bytes, tuple[pd.DataFrame, dict[int, str]]] | None = None

    def read(self, block: bytes, labels: int = 1) -> tuple[pd.DataFrame, dict[int, str]]:
        """See `FrameReader`."""
        last = self._last  # read once, since another thread may replace it
        if not last or last[0] is not block:
            last = self._last = block, super().read(block, labels)
        frame, bad_rows = last[1]
        return frame.copy(deep=False), dict(bad_rows)  # pandas copies a column once a model writes to it


def _has_exponent(block: bytes) -> bool:
    """Return whether there is something like 1e3 in a block, in whichever column."""
    characters = np.frombuffer(block, dtype=np.uint8)
    places = np.flatnonzero((characters[1:-1] | 0x20) == ord("e")) + 1
    before, after = characters[places - 1], characters[places + 1]
    is_digit = (before >= ord("0")) & (before <= ord("9"))
    return bool((is_digit & (((after >= ord("0")) & (after <= ord("9"))) | np.isin(after, _SIGNS))).any())
