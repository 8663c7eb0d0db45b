"""The columns of the frame that a fitted model takes: from fields of record lines to arrays of the exact data type.

A model that was trained here takes numbers and days as float64, and text. One that was brought in takes what its
notebook had (`FeatureType`): integers that must not pass through a float, booleans, timestamps, categories.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from predictions.formats.manifest import FeatureType
from predictions.formats.record_line import NULL, Column
from predictions.scoring.features import LARGEST, CategoryDecoder, DateDecoder, Decoder, NumberDecoder, parse_date

# Units of datetime64, in so many nanoseconds.
_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_DATETIME = re.compile(r"datetime64\[(?P<unit>s|ms|us|ns)(?:, *(?P<zone>[^\]]+))?\]")
_INTEGER = re.compile(r"(?P<unsigned>u)?int(?P<bits>8|16|32|64)", re.IGNORECASE)
_FLOATS = ("float16", "float32", "float64", "Float32", "Float64")
_TEXTS = ("str", "string", "object")
_OBJECTS = ("object[bool]", "object[date]")
_WHOLE = re.compile(rb"\s*([+-]?\d+)\.0*\s*")
_BOOLEANS = {b"t": True, b"true": True, b"1": True, b"f": False, b"false": False, b"0": False}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAT = np.iinfo(np.int64).min

KNOWN = "float64, float32, int8 to int64, uint8 to uint64, Int8 to Int64, bool, boolean, str, string, object, category"
KNOWN += ", datetime64[s, ms, us or ns], datetime64[us, ZONE], object[bool], object[date]"


@dataclass(frozen=True)
class ColumnReader:
    """How the fields of a column become an array.

    Args:
        decoder: from a field to a value.
        array: from values to an array of the column's data type, NumPy's or pandas'.
        parsed: the data type in which pandas' parser reads the column itself, value by value, since most columns of
            numbers repeat few values; None: it reads categories, which the decoder decodes.
        finish: from what pandas' parser read to the column's data type; raises ValueError if a value is outside its
            range, so that the decoder then names it.
        takes_null: whether the data type has a missing value.
    """

    decoder: Decoder
    array: Callable[[Any], Any]
    parsed: str | None = None
    finish: Callable[[pd.Series], Any] = lambda values: values
    takes_null: bool = True


def reader_for(column: Column, feature: FeatureType | None = None) -> ColumnReader:
    """Return the reader of a column; without a `FeatureType`, that of a model that was trained here.

    Raises:
        ValueError: the data type is not known.
    """
    if feature:
        return _reader(column, feature)
    if column.type == "date":
        return ColumnReader(DateDecoder(), _numpy("float64"))
    if column.is_number:
        return ColumnReader(NumberDecoder(), _numpy("float64"), "float64", _not_too_large)
    return ColumnReader(CategoryDecoder(), _numpy("object"))


def _reader(column: Column, feature: FeatureType) -> ColumnReader:
    dtype = feature.dtype
    if dtype in _FLOATS:
        return _float_reader(column, dtype)
    if match := _INTEGER.fullmatch(dtype):
        return _integer_reader(column, dtype, _bounds(match))
    if dtype in ("bool", "boolean"):
        decoder = BooleanDecoder() if dtype == "boolean" else _required(BooleanDecoder(), dtype, False)
        return ColumnReader(
            decoder, _extension(dtype) if dtype == "boolean" else _numpy(dtype), takes_null=dtype == "boolean"
        )
    if match := _DATETIME.fullmatch(dtype):
        unit, zone = match["unit"], match["zone"]
        return ColumnReader(TimestampDecoder(dtype, _UNITS[unit]), lambda values: _timestamps(values, unit, zone))
    if dtype in _TEXTS:
        return ColumnReader(TextDecoder(), _numpy(dtype) if dtype == "object" else _extension(dtype))
    if dtype in _OBJECTS:
        return ColumnReader(BooleanDecoder() if dtype == "object[bool]" else DayDecoder(), _numpy("object"))
    if dtype == "category" and feature.categories is not None:
        categories = pd.CategoricalDtype(feature.categories)
        codes = {category: code for code, category in enumerate(feature.categories)}
        return ColumnReader(CodeDecoder(codes), lambda values: pd.Categorical.from_codes(values, dtype=categories))
    raise ValueError(f"{dtype}: not a data type that a feature can have; there are {KNOWN}")


def _float_reader(column: Column, dtype: str) -> ColumnReader:
    array = _extension(dtype) if dtype[0] == "F" else _numpy(dtype)
    if column.type == "date":
        return ColumnReader(DateDecoder(), array)
    if not column.is_number:
        return ColumnReader(NumberDecoder(), array)
    # pandas' own Float64 would make NaN and NULL two things.
    finish = _not_too_large if dtype == "float64" else lambda values: array(_not_too_large(values).to_numpy())
    return ColumnReader(NumberDecoder(), array, "float64", finish)


def _integer_reader(column: Column, dtype: str, bounds: tuple[int, int]) -> ColumnReader:
    decoder = IntegerDecoder(dtype, bounds)
    if dtype[0] in "IU":
        return ColumnReader(decoder, _extension(dtype))
    is_parsed = column.type == "integer" and dtype != "uint64"
    return ColumnReader(
        _required(decoder, dtype, 0),
        _numpy(dtype),
        "int64" if is_parsed else None,
        lambda values: _within(values, bounds).astype(np.dtype(dtype)),
        takes_null=False,
    )


class IntegerDecoder(Decoder):
    """Decode the fields of a column to integers, without loss.

    Args:
        dtype: the column's data type, for messages.
        bounds: its smallest and its largest value.
    """

    missing: Any = None

    def __init__(self, dtype: str, bounds: tuple[int, int]) -> None:
        super().__init__()
        self._dtype = dtype
        self._smallest, self._largest = bounds

    def decode(self, field: bytes) -> int:
        if b"_" in field:  # int() would accept 1_000
            raise ValueError("not an integer")
        whole = _WHOLE.fullmatch(field)  # a decimal column writes 3.00
        try:
            number = int(whole[1] if whole else field)
        except ValueError:
            raise ValueError("not an integer") from None
        if not self._smallest <= number <= self._largest:
            raise ValueError(f"not in the range of {self._dtype}")
        return number


class BooleanDecoder(Decoder):
    """Decode the fields of a column to booleans, as databases write them: `t` and `f`, `true` and `false`, 1 and 0."""

    missing: Any = None

    def decode(self, field: bytes) -> bool:
        try:
            return _BOOLEANS[field]
        except KeyError:
            raise ValueError("not a boolean") from None


class TextDecoder(CategoryDecoder):
    """Decode the fields of a column to strings; NULL is None, of which pandas makes the data type's missing value."""

    missing: Any = None


class TimestampDecoder(Decoder):
    """Decode ISO 8601 to integers of a unit of time since 1970, in UTC if the field has a zone.

    Args:
        dtype: the column's data type, for messages.
        unit: of the integers, in nanoseconds.
    """

    missing: Any = _NAT

    def __init__(self, dtype: str, unit: int) -> None:
        super().__init__()
        self._dtype = dtype
        self._unit = unit

    def decode(self, field: bytes) -> int:
        nanoseconds = (parse_date(field) - _EPOCH) // timedelta(microseconds=1) * 1_000
        number = nanoseconds // self._unit
        if not _NAT < number < -_NAT:
            raise ValueError(f"a date out of the range of {self._dtype}")
        return number


class DayDecoder(Decoder):
    """Decode ISO 8601 to Python's dates, as drivers return a column of days."""

    missing: Any = None

    def decode(self, field: bytes) -> date:
        return parse_date(field).date()


class CodeDecoder(Decoder):
    """Decode fields to the codes of categories; a value that is none of them is missing, as in pandas.

    Args:
        codes: the code of each category: text, or all numbers, or all booleans.
    """

    missing: Any = -1

    def __init__(self, codes: dict[Any, int]) -> None:
        super().__init__()
        self._codes = codes
        kinds = {type(category) for category in codes}
        if kinds <= {str}:
            self._values: Decoder = CategoryDecoder()
        elif kinds == {int}:
            self._values = IntegerDecoder("int64", (_NAT, -_NAT - 1))
        else:
            self._values = BooleanDecoder() if kinds == {bool} else NumberDecoder()

    def decode(self, field: bytes) -> int:
        return self._codes.get(self._values.decode(field), -1)


def _required(decoder: Decoder, dtype: str, placeholder: Any) -> Decoder:
    """Make NULL a bad value of a decoder, since the data type has none; the placeholder stands in its place."""
    begin, decode = decoder.begin, decoder.decode

    def begin_without_null() -> None:
        begin()
        del decoder[NULL]

    def decode_no_null(field: bytes) -> Any:
        if field == NULL:
            raise ValueError(f"NULL, which {dtype} does not have")
        return decode(field)

    decoder.missing = placeholder
    decoder.begin, decoder.decode = begin_without_null, decode_no_null  # type: ignore[method-assign]
    decoder.begin()
    return decoder


def _numpy(dtype: str) -> Callable[[Any], Any]:
    return lambda values: np.array(values, dtype=dtype)


def _extension(dtype: str) -> Callable[[Any], Any]:
    return lambda values: pd.array(values, dtype=dtype)


def _timestamps(values: Sequence[int], unit: str, zone: str | None) -> Any:
    moments = pd.Series(np.array(values, dtype=np.int64).view(f"datetime64[{unit}]"))
    return (moments.dt.tz_localize("UTC").dt.tz_convert(zone) if zone else moments).array


def _bounds(match: re.Match[str]) -> tuple[int, int]:
    bits = int(match["bits"])
    return (0, (1 << bits) - 1) if match["unsigned"] else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _within(values: pd.Series, bounds: tuple[int, int]) -> pd.Series:
    if len(values) and not bounds[0] <= values.min() <= values.max() <= bounds[1]:
        raise ValueError
    return values


def _not_too_large(values: pd.Series) -> pd.Series:
    if (np.abs(values.to_numpy()) > LARGEST).any():
        raise ValueError
    return values
