"""Read the features of record lines into the data frame that a scikit-learn pipeline takes."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from predictions.formats.record_line import NULL, SEPARATOR, Column, split_columns
from predictions.scoring.features import LARGEST, decoder_for


class FrameReader:
    """Read the features of record lines into data frames, in the columns' order and with their names.

    A frame holds float64 for numbers and dates, objects for categories, and NaN for missing values.

    Args:
        columns: the features' names and types.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self._names = [str(index) for index in range(len(columns))]  # the names that pandas sees must be distinct
        self._parsed = [column.type in ("integer", "real") for column in columns]  # by pandas; others value by value
        # In a number column, pandas reads nothing but "True" and "False" as numbers; in a text column, it makes nothing
        # but digits number categories. This line, appended to each block, is neither and makes it keep to the types.
        self._last_line = SEPARATOR.join([NULL, *(b"0" if parsed else b"1970-01-01" for parsed in self._parsed)])
        self._decoders = [decoder_for(column) for column in columns]

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

    def _parse(self, block: bytes, labels: int) -> pd.DataFrame | None:
        try:
            parsed = pd.read_csv(
                io.BytesIO(block + SEPARATOR.join([self._last_line, *[NULL] * labels]) + b"\n"),
                sep="\t",
                header=None,
                names=["id", *self._names, *(f"label {number}" for number in range(labels))],
                usecols=self._names,
                dtype={
                    name: "float64" if parsed else "category"
                    for name, parsed in zip(self._names, self._parsed, strict=True)
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
        for name, column, decoder in zip(self._names, self.columns, self._decoders, strict=True):
            values = parsed[name].iloc[:-1]
            if column.type in ("integer", "real"):
                if (np.abs(values.to_numpy()) > LARGEST).any():
                    return None
            else:
                dtype: Any = np.float64 if column.is_number else object
                try:
                    categories = [decoder.decode(text.encode()) for text in values.cat.categories]
                except ValueError:
                    return None
                # The code of a missing value is -1, so it selects the last element.
                decoded = np.array([*categories, np.nan], dtype=dtype)[values.cat.codes.to_numpy()]
                values = pd.Series(decoded, dtype=dtype, copy=False)
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
