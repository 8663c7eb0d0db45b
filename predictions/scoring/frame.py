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
        self._names = [str(index) for index in range(len(columns) + 2)]  # the names that pandas sees must be distinct
        self._parsed = [column.type in ("integer", "real") for column in columns]  # by pandas; others value by value
        # In a number column, pandas reads nothing but "True" and "False" as numbers; in a text column, it makes nothing
        # but digits number categories. This line, appended to each block, is neither and makes it keep to the types.
        self._last_line = SEPARATOR.join([NULL, *(b"0" if parsed else b"1970-01-01" for parsed in self._parsed), NULL])
        self._decoders = [decoder_for(column) for column in columns]

    def read(self, block: bytes) -> tuple[pd.DataFrame, dict[int, str]]:
        """Decode the features of one block.

        Args:
            block: whole record lines, at least one, whose fields have been counted.

        Returns:
            The frame, and for each row with a bad value the row's index, the column and the reason. Bad values count
            as missing.
        """
        # pandas' parser is three times faster than ours, but gives up at the first bad value.
        frame = self._parse(block)
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
                    name: "float64" if parsed else "category"
                    for name, parsed in zip(self._names[1:-1], self._parsed, strict=True)
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
        for name, column, decoder in zip(self._names[1:-1], self.columns, self._decoders, strict=True):
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
