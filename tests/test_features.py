"""Two ways to decode a block, which must not differ: pandas' parser, and the exact one that it falls back to."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.features import MEMO_ENTRIES, FrameReader
from predictions.records import NULL, Column, escape, split_columns, write_rows

COLUMNS = [Column("kind", "text"), Column("amount", "real"), Column("kind.1", "integer")]

texts = st.text().map(lambda text: escape(text.encode(errors="replace"))) | st.sampled_from(
    [NULL, b"", b'"', b'a"b', b"'", b"#", b"NA", b"nan", b"None", b" x ", b"\xef\xbb\xbfx", b"\\\\N", b"\xff", b"a\0b"]
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


@given(st.lists(st.tuples(st.just(b"id"), texts, numbers, numbers, st.just(NULL)), min_size=1, max_size=8))
def test_the_fast_parser_agrees_with_the_exact_one(rows):
    block = write_rows(rows)
    reader = FrameReader(COLUMNS)
    exact, bad_rows = reader._decode(split_columns(block, 5)[1:-1])
    frame, found_bad = reader.read(block)
    pd.testing.assert_frame_equal(frame, exact, check_exact=True)
    assert found_bad == bad_rows


@pytest.mark.parametrize(
    "field",
    [NULL, b"", b" 1", b"1 ", b" ", b"1_0", b"0x10", b"1e5", b"+1", b"NaN", b"nan", b"-inf", b"1,5", b"1e400", b"1e39",
     b"-1e39", b"3.4e38", b"abc", b"1e", b"0.1", b"1 2", b"True", b"\xc2\xa01", b"1.7976931348623157e+308", b"5e-324"],
)  # fmt: skip
def test_a_number_is_decoded_alike_whatever_its_neighbours_in_the_block(field):
    block = write_rows([[b"1", b"a", field, b"1", b"0"]])
    reader = FrameReader(COLUMNS)
    exact, bad_rows = reader._decode(split_columns(block, 5)[1:-1])
    frame, found_bad = reader.read(block)
    pd.testing.assert_frame_equal(frame, exact, check_exact=True)
    assert found_bad == bad_rows


def test_ordinary_blocks_take_the_fast_way():
    block = write_rows([[b"1", b"a\\tb", b"0.1", NULL, b"0"], [b"2", NULL, NULL, b"7", b"1"]])
    reader = FrameReader(COLUMNS)
    frame = reader._parse(block)
    assert frame is not None
    assert frame["kind"].tolist()[0] == "a\tb"
    assert math.isnan(frame["kind"].tolist()[1])
    np.testing.assert_array_equal(frame["amount"], [0.1, math.nan])
    assert list(frame.columns) == ["kind", "amount", "kind.1"]


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


def test_the_memo_is_bounded():
    reader = FrameReader([Column("n", "integer")])
    for start in range(0, 3 * MEMO_ENTRIES, MEMO_ENTRIES):
        reader._decode([[b"%d" % number for number in range(start, start + MEMO_ENTRIES)]])
    assert len(reader._decoders[0]) <= 2 * MEMO_ENTRIES
    frame, _bad = reader._decode([[NULL, b"5"]])
    assert math.isnan(frame["n"][0])
