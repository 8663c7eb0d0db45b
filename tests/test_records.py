import io

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from predictions.formats.id_digest import IdDigest
from predictions.formats.record_line import (
    NULL,
    escape,
    feature_fields,
    field_ends,
    fingerprints,
    first_fields,
    read_blocks,
    split_columns,
    split_lines,
    unescape,
    write_rows,
)

ODD_TEXTS = [
    *(
        "",
        "\\N",
        "\\",
        "\\\\",
        "\t",
        "\r",
        "\n",
        "\r\n",
        "\0",
        "a\tb\nc\\td",
        "'",
        '"',
        '"a""b"',
        "\u2028",
        "\u2029",
        "\x85",
    ),
    *(
        "\x1c\x1d\x1e",
        "\ufeff",
        "\ufeffa",
        "🙂",
        "👨‍👩‍👧",
        "é",
        "e\u0301",
        "NULL",
        " x ",
        "#",
        "\x1a",
        "\x7f",
        "\x08\x0b\x0c",
    ),
]
values = st.binary() | st.text().map(str.encode) | st.sampled_from([text.encode() for text in ODD_TEXTS])


@given(values)
def test_escape_and_back(value):
    field = escape(value)
    assert unescape(field) == value
    assert field != NULL
    assert not set(field) & set(b"\t\n\r\v\f\b")


def test_a_megabyte_comes_back():
    text = "".join(ODD_TEXTS)
    value = (text * (1_000_000 // len(text) + 1)).encode()
    field = escape(value)
    assert unescape(field) == value
    block = write_rows([[b"1", field, b"0"], [b"2", field, b"1"]])
    assert split_columns(block, 3) == [[b"1", b"2"], [field, field], [b"0", b"1"]]
    ends = field_ends(block, 3)
    assert first_fields(block, ends) == [b"1", b"2"]
    assert list(feature_fields(block, ends)) == [field, field]


@pytest.mark.parametrize(
    ("field", "value"),
    # PostgreSQL's documentation of COPY: these escapes, and "any other backslashed character" stands for itself.
    [(rb"\b\f\n\r\t\v\\", b"\b\f\n\r\t\v\\"), (rb"a\.b", b"a.b"), (rb"\\N", rb"\N"), (b"plain", b"plain")],
)
def test_unescape_as_postgresql_does(field, value):
    assert unescape(field) == value


@given(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1), st.integers(1, 40))
def test_lines_come_back_whatever_the_block_size(rows, size):
    rows = [[escape(value) for value in row] for row in rows]
    data = write_rows(rows)
    blocks = list(read_blocks(io.BytesIO(data), size))
    assert b"".join(blocks) == data
    assert all(block.endswith(b"\n") for block in blocks)
    lines = [line for block in blocks for line in split_lines(block)]
    assert lines == [b"\t".join(row) for row in rows]
    assert list(map(list, zip(*split_columns(data, 3), strict=True))) == rows
    assert first_fields(data, field_ends(data, 3)) == [row[0] for row in rows]
    assert list(feature_fields(data, field_ends(data, 3))) == [row[1] for row in rows]


def test_a_last_line_without_line_feed_is_a_line():
    assert list(read_blocks(io.BytesIO(b"a\nb"), 100)) == [b"a\n", b"b\n"]
    assert list(read_blocks(io.BytesIO(b""))) == []


@given(st.binary(), st.integers(1, 50))
def test_a_last_line_without_line_feed_is_left_as_it_is_on_request(data, size):
    blocks = list(read_blocks(io.BytesIO(data), size, end=b""))
    assert b"".join(blocks) == data
    assert all(block.endswith(b"\n") for block in blocks[:-1])


def test_only_a_line_feed_ends_a_line():
    text = "a\rb\u2028c\x85d\x0be\x1cf".encode()
    assert split_lines(next(read_blocks(io.BytesIO(text)))) == [text]


def test_the_id_and_the_features_of_each_line():
    block = b"1\ta\t2\t0\n\xc3\xa9\t\t\\N\t\\N\n"
    ends = field_ends(block, 4)
    assert first_fields(block, ends) == [b"1", b"\xc3\xa9"]
    assert list(feature_fields(block, ends)) == [b"a\t2", b"\t\\N"]


@pytest.mark.parametrize(
    ("block", "index", "fields"),
    [
        (b"1\ta\t0\n2\t0\n", 1, 2),
        (b"1\ta\tb\t0\n2\t0\n", 0, 4),
        (b"1\ta\t0\n\n", 1, 1),
        (b"1\ta\t0\n2\ta\tb\tc\td\t0\n", 1, 6),
    ],
)
def test_a_line_with_another_number_of_fields_is_found(block, index, fields):
    with pytest.raises(ValueError, match=rf"\({index}, {fields}\)"):
        field_ends(block, 3)


def test_field_ends():
    assert field_ends(b"ab\tc\n\t\n", 2).tolist() == [[2, 4], [5, 6]]


@given(st.lists(st.lists(values.map(escape), min_size=1, max_size=5), min_size=1))
def test_fields_are_never_taken_from_the_next_line(rows):
    # Even with the right number of separators in all, some lines may have too many and others too few.
    data = write_rows(rows)
    bad_rows = [(index, len(row)) for index, row in enumerate(rows) if len(row) != 3]
    if bad_rows:
        with pytest.raises(ValueError, match=r"^\(\d+, \d+\)$") as raised:
            field_ends(data, 3)
        assert raised.value.args == bad_rows[0]
    else:
        assert first_fields(data, field_ends(data, 3)) == [row[0] for row in rows]


def test_fingerprint_vectors():
    # As `xxhsum -H3` prints them; clients in other languages compute the same values.
    assert fingerprints([b"", b"UA\tEWR\tIAH\t1400", "é\\t\t\\N".encode()]) == [
        b"2d06800538d394c2",
        b"b8e4428ef77c16b4",
        b"72fd890f1fe830d9",
    ]


@given(st.lists(st.binary(min_size=1), unique=True), st.integers(0, 5))
def test_id_digest_adds_up_over_parts_in_any_order(ids, cut):
    whole = IdDigest.of(ids)
    assert IdDigest.of(reversed(ids)) == whole
    assert IdDigest.of(ids[:cut]) + IdDigest.of(ids[cut:]) == whole
    assert sum(map(IdDigest.of, ([record_id] for record_id in ids)), IdDigest()) == whole == 0 + whole
    assert IdDigest.of(ids * 3) == whole * 3
    assert whole == sum(map(xxhash.xxh3_64_intdigest, ids)) % 2**64
    assert (IdDigest.parse(str(whole)), len(str(whole))) == (whole, 16)
