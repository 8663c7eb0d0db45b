"""From the fields of record lines to the data frame that a scikit-learn pipeline takes."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from predictions.records import NULL, SEPARATOR, Column, split_columns, unescape

LARGEST = float(np.finfo(np.float32).max)  # scikit-learn's trees compute in single precision, and raise beyond it
MEMO_ENTRIES = 100_000  # distinct values remembered a column; a bound, so that memory stays flat


class _Decoder(dict[bytes, Any]):
    """A column's values by their fields, each decoded once: most columns repeat few values.

    `bad` has the fields that are no value of the column's type, with the reason.
    """

    missing: Any = np.nan

    def __init__(self) -> None:
        super().__init__({NULL: self.missing})
        self.bad: dict[bytes, str] = {}

    def __missing__(self, field: bytes) -> Any:
        try:
            value = self.decode(field)
        except ValueError as error:
            self.bad[field] = str(error)
            value = self.missing
        self[field] = value
        return value

    def decode(self, field: bytes) -> Any:
        raise NotImplementedError

    def forget(self) -> None:
        """Keep the memory bounded; called between blocks."""
        if len(self) > MEMO_ENTRIES:
            self.clear()
            self.bad.clear()
            self[NULL] = self.missing


class NumberDecoder(_Decoder):
    """Fields of a number column to floats."""

    def decode(self, field: bytes) -> float:
        if b"_" in field:  # float() takes 1_000
            raise ValueError("not a number")
        try:
            number = float(field)
        except ValueError:
            raise ValueError("not a number") from None
        if math.isinf(number):
            raise ValueError("not a finite number")
        if abs(number) > LARGEST:
            raise ValueError("too large a number")
        return number


class CategoryDecoder(_Decoder):
    """Fields of a category column to strings."""

    def decode(self, field: bytes) -> str:
        try:
            return unescape(field).decode()
        except UnicodeDecodeError:
            raise ValueError("not valid UTF-8") from None


class FrameReader:
    """Reads the features of record lines into data frames, in the columns' order and with their names.

    A frame holds float64 for numbers, objects for categories, and NaN for what is missing.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self._names = [str(index) for index in range(len(columns) + 2)]  # of any source, and never twice the same
        # pandas takes a column of nothing but "True" and "False" for numbers; with this line it is not one.
        self._last_line = SEPARATOR.join([NULL, *(b"0" if column.is_number else NULL for column in columns), NULL])
        self._decoders = [NumberDecoder() if column.is_number else CategoryDecoder() for column in columns]

    def read(self, block: bytes) -> tuple[pd.DataFrame, dict[int, str]]:
        """Decode the features of one block.

        Args:
            block: whole record lines, at least one, whose fields have been counted.

        Returns:
            The frame, and for each row that holds what its column cannot, the row's index with the column and the
            reason. Such a value counts as missing.
        """
        # pandas' parser is three times faster, but ends a field at a NUL and gives up at the first odd value.
        frame = None if b"\0" in block else self._parse(block)
        if frame is not None:
            return frame, {}
        _record_ids, *fields, _labels = split_columns(block, len(self.columns) + 2)
        return self._decode(fields)

    def _parse(self, block: bytes) -> pd.DataFrame | None:
        try:
            parsed = pd.read_csv(
                io.BytesIO(block + self._last_line + b"\n"),
                sep="\t",
                header=None,
                names=self._names,
                usecols=self._names[1:-1],
                dtype={
                    name: "float64" if column.is_number else "category"
                    for name, column in zip(self._names[1:-1], self.columns, strict=True)
                },
                na_values=["\\N"],
                keep_default_na=False,
                quoting=csv.QUOTE_NONE,
                lineterminator="\n",
                skip_blank_lines=False,
                engine="c",
                low_memory=False,  # a block is small: parsed in one piece, it is faster
            )
        except ValueError:
            return None
        frame: dict[str, pd.Series] = {}
        for name, column in zip(self._names[1:-1], self.columns, strict=True):
            values = parsed[name].iloc[:-1]
            if column.is_number:
                if (np.abs(values.to_numpy()) > LARGEST).any():
                    return None
            else:
                categories = [unescape_text(text) for text in values.cat.categories]
                # The code of a missing value is -1, the last.
                objects = np.array([*categories, np.nan], dtype=object)[values.cat.codes.to_numpy()]
                values = pd.Series(objects, dtype=object, copy=False)
            frame[column.name] = values
        return pd.DataFrame(frame, copy=False)

    def _decode(self, fields: Sequence[Sequence[bytes]]) -> tuple[pd.DataFrame, dict[int, str]]:
        frame: dict[str, pd.Series] = {}
        bad_rows: dict[int, str] = {}
        for column, decoder, column_fields in zip(self.columns, self._decoders, fields, strict=True):
            decoder.forget()
            values = list(map(decoder.__getitem__, column_fields))
            dtype: Any = np.float64 if column.is_number else object
            frame[column.name] = pd.Series(np.array(values, dtype=dtype), dtype=dtype, copy=False)
            if decoder.bad:
                for row, field in enumerate(column_fields):
                    if field in decoder.bad:
                        bad_rows.setdefault(row, f"{column.name}: {decoder.bad[field]}")
        return pd.DataFrame(frame, copy=False), bad_rows


def unescape_text(text: str) -> str:
    return unescape(text.encode()).decode() if "\\" in text else text
