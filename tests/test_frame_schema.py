"""The frame of a fitted model: every field becomes a value of the data type of its column, or a named bad value."""

import math
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.formats.manifest import FeatureType
from predictions.formats.record_line import NULL, Column, split_columns, write_rows
from predictions.scoring.dtypes import reader_for
from predictions.scoring.frame import FrameReader

# A column of each data type: its type in the database, and its categories if it has some.
DTYPES = {
    "int64": "integer",
    "int8": "integer",
    "uint64": "integer",
    "Int64": "integer",
    "float32": "real",
    "float64": "real",
    "Float64": "real",
    "bool": "text",
    "boolean": "text",
    "object[bool]": "text",
    "str": "text",
    "string": "text",
    "object": "text",
    "category": "text",
    "datetime64[us]": "date",
    "datetime64[ns, UTC]": "date",
    "datetime64[s, Europe/Vienna]": "date",
    "object[date]": "date",
}
READERS = {
    dtype: FrameReader(
        [Column("c", type_)], [FeatureType("c", dtype, ["a", "t", "é"] if dtype == "category" else None)]
    )
    for dtype, type_ in DTYPES.items()
}

integers = st.integers(-(2**63) - 1, 2**64) | st.sampled_from([-129, -128, 127, 128, 2**53 + 1])
fields = {
    "integer": integers.map(b"%d".__mod__)
    | st.sampled_from([NULL, b"", b"+1", b" 1", b"1 ", b"007", b"3.00", b"3.5", b"1e3", b"0x1", b"1_0", b"True", b"x"]),
    "real": st.floats().map(lambda number: repr(number).encode()) | st.sampled_from([NULL, b"", b"7", b"1e39", b"x"]),
    "text": st.sampled_from([NULL, b"", b"t", b"f", b"true", b"1", b"0", b"a", b"\xc3\xa9", b"\xff", b"nan", b"007"]),
    "date": st.datetimes().map(lambda moment: moment.isoformat(" ").encode())
    | st.sampled_from([NULL, b"", b"x", b"2026-11-22", b"2026-11-22 10:00:00.123456+02", b"infinity", b"20454"]),
}
blocks = st.sampled_from(list(DTYPES)).flatmap(
    lambda dtype: st.tuples(st.just(dtype), st.lists(fields[DTYPES[dtype]], min_size=1, max_size=4))
)


@given(blocks)
def test_both_decoders_of_a_block_agree(block):
    dtype, values = block
    reader, rows = READERS[dtype], write_rows([b"id", value, NULL] for value in values)
    exact, bad_rows = reader._decode(split_columns(rows, 3)[1:-1])
    frame = reader._parse(rows)
    assert frame is not None or bad_rows or any(b"." in value for value in values)
    if frame is not None:
        pd.testing.assert_frame_equal(frame, exact, check_exact=True)
        assert bad_rows == {}
    assert str(exact["c"].dtype) == (dtype.partition("[")[0] if dtype.startswith("object") else dtype)


def test_the_frame_has_the_order_of_the_schema():
    reader = FrameReader(
        [Column("a", "integer"), Column("b", "text")], [FeatureType("b", "str"), FeatureType("a", "int64")]
    )
    frame, _bad_rows = reader.read(write_rows([[b"id", b"1", b"x", NULL]]))
    assert [(name, str(dtype)) for name, dtype in frame.dtypes.items()] == [("b", "str"), ("a", "int64")]


def column_of(dtype, *values, categories=None, type_=None):
    """Read one column, and return it with the rows of bad values."""
    columns = [Column("c", type_ or DTYPES.get(dtype, "integer"))]
    reader = FrameReader(columns, [FeatureType("c", dtype, categories)])
    frame, bad_rows = reader.read(write_rows([b"id", value, NULL] for value in values))
    return frame["c"], bad_rows


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64"])
def test_integers_keep_their_last_digit(dtype):
    numbers = [2**53 + 1, 2**53 + 2, 2**63 - 1]
    column, bad_rows = column_of(dtype, *map(b"%d".__mod__, numbers))
    assert (str(column.dtype), column.tolist(), bad_rows) == (dtype, numbers, {})


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("Int64", [b"9007199254740993", NULL], pd.array([2**53 + 1, None], dtype="Int64")),
        ("boolean", [b"t", b"0", NULL], pd.array([True, False, None], dtype="boolean")),
        ("bool", [b"t", b"false", b"1"], np.array([True, False, True])),
        ("object[bool]", [b"t", NULL], np.array([True, None], dtype=object)),
        ("object", [b"a", NULL], np.array(["a", None], dtype=object)),
        ("str", [b"a", NULL], pd.array(["a", None], dtype="str")),
        ("object[date]", [b"2026-11-22", NULL], np.array([date(2026, 11, 22), None], dtype=object)),
        ("float32", [b"0.1", NULL], np.array([0.1, np.nan], dtype=np.float32)),
    ],
)
def test_values_are_those_of_pandas(dtype, values, expected):
    column, bad_rows = column_of(dtype, *values)
    pd.testing.assert_series_equal(column, pd.Series(expected, name="c", dtype=expected.dtype), check_exact=True)
    assert bad_rows == {}


def test_a_timestamp_is_the_same_moment_in_any_zone():
    column, bad_rows = column_of("datetime64[ns, Europe/Vienna]", b"2026-03-29 03:30:00.000001+02", NULL, type_="date")
    assert str(column[0]) == "2026-03-29 03:30:00.000001+02:00"
    assert (column.isna().tolist(), bad_rows) == ([False, True], {})
    column, bad_rows = column_of("datetime64[ns]", b"1500-01-01", type_="date")
    assert bad_rows == {0: "c: a date out of the range of datetime64[ns]"}


@pytest.mark.parametrize(
    ("categories", "values", "codes"),
    [
        (["b", "a"], [b"a", b"b", b"never seen", NULL], [1, 0, -1, -1]),
        ([7, 2**53 + 1], [b"7", b"9007199254740993", b"9007199254740992", NULL], [0, 1, -1, -1]),
        ([False, True], [b"t", b"0"], [1, 0]),
    ],
)
def test_a_category_has_the_categories_of_the_fit(categories, values, codes):
    column, bad_rows = column_of("category", *values, categories=categories)
    assert (column.cat.categories.tolist(), column.cat.codes.tolist(), bad_rows) == (categories, codes, {})


@pytest.mark.parametrize(
    ("dtype", "bad", "reason"),
    [
        ("int64", NULL, "NULL, which int64 does not have"),
        ("bool", NULL, "NULL, which bool does not have"),
        ("int64", b"1.5", "not an integer"),
        ("int64", b"9223372036854775808", "not in the range of int64"),
        ("int8", b"128", "not in the range of int8"),
        ("Int64", b"x", "not an integer"),
        ("boolean", b"yes", "not a boolean"),
        ("float64", b"1e39", "too large a number"),
        ("datetime64[us]", b"22.11.2026", "not a date"),
    ],
)
def test_a_bad_value_is_named_and_its_neighbours_keep_theirs(dtype, bad, reason):
    good = {"d": b"2026-11-22", "b": b"1"}.get(dtype[0], b"7")
    column, bad_rows = column_of(dtype, good, bad, good)
    alone, _none = column_of(dtype, good)
    assert bad_rows == {1: f"c: {reason}"}
    assert column[0] == column[2] == alone[0]


def test_a_float_is_read_as_today():
    column, _bad_rows = column_of("float64", b"9007199254740993", NULL, type_="integer")
    assert column[0] == float(2**53)
    assert math.isnan(column[1])


@pytest.mark.parametrize("dtype", ["complex128", "datetime64", "category", "int128", "Str"])
def test_an_unknown_data_type_is_refused(dtype):
    with pytest.raises(ValueError, match="not a data type that a feature can have"):
        reader_for(Column("c", "text"), FeatureType("c", dtype))
