"""The two decoders of a block must agree: pandas' parser, and the exact one that it falls back to."""

import math
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.formats.record_line import NULL, Column, escape, split_columns, write_rows
from predictions.scoring.features import LARGEST, MEMO_BYTES, DateDecoder
from predictions.scoring.frame import FrameReader

COLUMNS = [Column("kind", "text"), Column("amount", "real"), Column("kind.1", "integer")]
DATED = [*COLUMNS, Column("day", "date")]

texts = st.text().map(lambda text: escape(text.encode(errors="replace"))) | st.sampled_from(
    [
        *(
            NULL,
            b"",
            b'"',
            b'a"b',
            b"'",
            b"#",
            b"NA",
            b"nan",
            b"None",
            b" x ",
            b"\xef\xbb\xbfx",
            b"\\\\N",
            b"\xff",
            b"a\0b",
        ),
        # Text that pandas would take for another type.
        *(b"007", b"7", b"1.5", b"1e3", b"True", b"False", b"inf", b"2026-01-01", b"\r", b"a\rb", b"\xe2\x80\xa8"),
    ]
)
numbers = (
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b"%d" % number)
    | st.floats().map(lambda number: repr(number).encode())
    | st.sampled_from(
        [
            NULL,
            b"",
            b" 1",
            b"1 ",
            b"1_0",
            b"0x10",
            b"1e5",
            b"+1",
            b".5",
            b"5.",
            b"NaN",
            b"-inf",
            b"1,5",
            b"1e400",
            b"abc",
            b"\xd9\xa1",
        ]
    )
)


# From the year 1000: strftime drops leading zeros.
moments = st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.none() | st.just(UTC))
dates = (
    st.dates().map(lambda date: date.isoformat().encode())
    | st.tuples(moments, st.sampled_from("T ")).map(lambda pair: pair[0].isoformat(pair[1]).encode())
    | st.sampled_from(
        [NULL, b"", b" ", b"x", b"22.11.2026", b"2026-02-30", b"20454", b"True", b"infinity", b"0044-03-15 BC"]
    )
    | texts
)
rows_of_all_types = st.lists(
    st.tuples(st.just(b"id"), texts, numbers, numbers, dates, st.just(NULL)), min_size=1, max_size=8
)


@given(rows_of_all_types)
def test_the_fast_parser_agrees_with_the_exact_one(rows):
    block = write_rows(rows)
    reader = FrameReader(DATED)
    exact, bad_rows = reader._decode(split_columns(block, 6)[1:-1])
    frame, fast_bad_rows = reader.read(block)
    pd.testing.assert_frame_equal(frame, exact, check_exact=True)
    assert fast_bad_rows == bad_rows


@pytest.mark.parametrize(
    "field",
    [NULL, b"", b" 1", b"1 ", b" ", b"1_0", b"0x10", b"1e5", b"+1", b"NaN", b"nan", b"-inf", b"1,5", b"1e400", b"1e39",
     b"-1e39", b"3.4e38", b"abc", b"1e", b"0.1", b"1 2", b"True", b"\xc2\xa01", b"1.7976931348623157e+308", b"5e-324"],
)  # fmt: skip
def test_a_number_is_decoded_alike_whatever_its_neighbours_in_the_block(field):
    block = write_rows([[b"1", b"a", field, b"1", b"0"]])
    reader = FrameReader(COLUMNS)
    exact, bad_rows = reader._decode(split_columns(block, 5)[1:-1])
    frame, fast_bad_rows = reader.read(block)
    pd.testing.assert_frame_equal(frame, exact, check_exact=True)
    assert fast_bad_rows == bad_rows


def test_ordinary_blocks_take_the_fast_way():
    block = write_rows(
        [[b"1", b"a\\tb", b"0.1", NULL, b"1970-01-02 12:00", b"0"], [b"2", NULL, NULL, b"7", NULL, b"1"]]
    )
    reader = FrameReader(DATED)
    frame = reader._parse(block)
    assert frame is not None
    assert frame["kind"].tolist()[0] == "a\tb"
    assert math.isnan(frame["kind"].tolist()[1])
    np.testing.assert_array_equal(frame["amount"], [0.1, math.nan])
    np.testing.assert_array_equal(frame["day"], [1.5, math.nan])
    assert list(frame.columns) == ["kind", "amount", "kind.1", "day"]
    assert [str(dtype) for dtype in frame.dtypes] == ["object", "float64", "float64", "float64"]


@pytest.mark.parametrize("field", [b"007", b"7", b"1.5", b"1e3", b"True", b"inf", b"nan", b"", b"2026-01-01"])
def test_a_category_that_looks_like_a_number_stays_text_even_where_the_whole_block_does(field):
    reader = FrameReader(COLUMNS)
    frame = reader._parse(write_rows([[b"1", field, b"1", b"1", b"0"], [b"2", NULL, b"1", b"1", b"0"]]))
    assert frame["kind"].tolist()[0] == field.decode()
    assert math.isnan(frame["kind"].tolist()[1])


@pytest.mark.parametrize("kind", ["text", "integer", "date"])
def test_a_block_of_nothing_but_null(kind):
    frame, bad_rows = FrameReader([Column("a", kind)]).read(write_rows([[b"1", NULL, b"0"]] * 2))
    assert (frame["a"].isna().tolist(), bad_rows) == ([True, True], {})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([b"a", b"x", b"1"], "amount: not a number"),
        ([b"a", b"1", b"-inf"], "kind.1: not a finite number"),
        ([b"\xff", b"1", b"1"], "kind: not valid UTF-8"),
        ([b"a", b"1e39", b"1"], "amount: too large a number"),
        ([b"\xff", b"1_0", b"1"], "kind: not valid UTF-8"),
    ],
)
def test_a_bad_value_is_named_and_its_neighbours_are_not(fields, reason):
    good = [b"1", b"a", b"1", b"1", b"0"]
    frame, bad_rows = FrameReader(COLUMNS).read(write_rows([good, [b"2", *fields, b"0"], good]))
    assert bad_rows == {1: reason}
    assert frame["amount"].tolist()[0] == frame["amount"].tolist()[2] == 1.0


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("1970-01-01", 0),
        ("1969-12-31", -1),
        ("2026-11-22", (date(2026, 11, 22) - date(1970, 1, 1)).days),
        ("0001-01-01", -719162),
        ("9999-12-31", 2932896),
        ("1970-01-02 12:00", 1.5),
        ("1970-01-02T12:00", 1.5),
        ("1970-01-02 12:00:00", 1.5),
        ("1970-01-01 00:00:00.5", 0.5 / 86400),
        ("1970-01-01 00:00:00.000001", 1e-6 / 86400),
        ("1970-01-01 00:00:00Z", 0),
        ("1970-01-01T12:00+12:00", 0),
        ("1970-01-01 12:00:00+12", 0),  # as PostgreSQL writes timestamptz
        ("1969-12-31 18:30:00-0530", 0),
        ("1893-03-31 23:53:28+00:53:28", -28034 + 82800 / 86400),  # and in times when the zone had seconds
        ("9999-12-31 23:59:00-12:00", 2932896 + 2159 / 1440),
        ("0001-01-01 00:00+12:00", -719162.5),
    ],
)
def test_a_date_is_days_since_1970(text, days):
    assert DateDecoder().decode(text.encode()) == pytest.approx(days, rel=1e-15, abs=1e-15)


@given(st.dates(), st.dates())
def test_dates_keep_their_distances(one, other):
    decoder = DateDecoder()
    days = decoder[other.isoformat().encode()] - decoder[one.isoformat().encode()]
    assert days == (other - one).days


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (b"22.11.2026", "not a date"),
        (b"11/22/2026", "not a date"),
        (b"20261122", "not a date"),
        (b"2026-11-22 ", "not a date"),
        (b"2026-11-22\\n", "not a date"),
        (b"", "not a date"),
        (b"1", "not a date"),
        (b"\xff", "not a date"),
        ("٢٠٢٦-11-22".encode(), "not a date"),  # digits, but not those of ISO 8601
        (b"2026-02-30", "a date out of range"),
        (b"2026-13-01", "a date out of range"),
        (b"2026-11-22 25:00", "a date out of range"),
        (b"0000-01-01", "a date out of range"),
        # PostgreSQL's last and first years, and its infinities.
        (b"294276-12-31", "a date out of range"),
        (b"0044-03-15 BC", "a date out of range"),
        (b"infinity", "a date out of range"),
        (b"-infinity", "a date out of range"),
    ],
)
def test_an_invalid_date_is_named_and_its_neighbours_are_read(field, reason):
    reader = FrameReader([Column("day", "date")])
    frame, bad_rows = reader.read(write_rows([[b"1", b"1970-01-02", b"0"], [b"2", field, b"0"], [b"3", NULL, b"0"]]))
    assert bad_rows == {1: f"day: {reason}"}
    assert frame["day"].tolist()[0] == 1.0
    assert frame["day"].isna().tolist() == [False, True, True]


def test_the_largest_number_is_the_largest_of_single_precision():
    frame, bad_rows = FrameReader([Column("n", "real")]).read(
        write_rows([[b"1", repr(LARGEST).encode(), b"0"], [b"2", repr(LARGEST * 1.0000001).encode(), b"0"]])
    )
    assert bad_rows == {1: "n: too large a number"}
    assert np.float32(frame["n"][0]) == np.finfo(np.float32).max


def remembered(decoder):
    return sum(map(len, decoder)) + sum(map(len, decoder.bad))


def test_the_memo_is_bounded_where_there_are_many_distinct_values():
    reader = FrameReader([Column("n", "integer")])
    block, blocks = 10_000, 12
    for start in range(0, blocks * block, block):
        reader._decode([[b"%d" % number for number in range(start, start + block)]])
    # Each entry costs memory besides its field: some tens of thousands of entries, and those of the last block.
    assert block <= len(reader._readers[0].decoder) < MEMO_BYTES // 100 + block < blocks * block
    frame, bad_rows = reader._decode([[NULL, b"5"]])
    assert math.isnan(frame["n"][0])
    assert (frame["n"][1], bad_rows) == (5.0, {})


@pytest.mark.parametrize("kind", ["text", "integer", "date"])
def test_the_memo_is_bounded_where_values_are_large(kind):
    reader = FrameReader([Column("a", kind)])
    most = 0
    for number in range(40):
        reader._decode([[b"%d%b" % (number, b"x" * 1_000_000)]])
        most = max(most, remembered(reader._readers[0].decoder))
    # An invalid value is remembered twice: by its value and by its reason.
    assert most <= 2 * (MEMO_BYTES + 1_100_000)


def test_a_value_that_was_bad_is_bad_again_after_it_was_forgotten():
    reader = FrameReader([Column("n", "integer")])
    for _turn in range(3):
        assert reader._decode([[b"bad", b"1"]])[1] == {0: "n: not a number"}
        reader._decode([[b"1%b" % (b"0" * MEMO_BYTES)]])
