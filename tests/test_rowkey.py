import os
import subprocess
import zlib
from collections import Counter
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.formats.record_line import NULL, escape, unescape
from predictions.formats.row_key import MAX_ID_BYTES, record_id, row_keys, split_points, unfit, why_unfit

SAME_PREFIX = list(islice((b"%d" % n for n in count() if zlib.crc32(b"%d" % n) >> 16 == 0x3224), 5))  # the prefix of 42
ODD_IDS = [
    *(b"007", b"7", b" 7", b"7 ", b"1e3", b"1000", b"9223372036854775807", b"-1", b"\\N", b"\\", b"\\\\", b"'", b'"'),
    *(
        b"550e8400-e29b-41d4-a716-446655440000",
        b"a\tb",
        b"a\\tb",
        b"a\nb",
        b"a\r\nb",
        b"\0",
        b"a\0b",
        b"unreadable:x:1",
    ),
    *(text.encode() for text in ("é", "e\u0301", "\u2028", "\u0085", "\ufeff7", "🙂", "İ", "𝟕")),
    *(b"x" * (MAX_ID_BYTES - 1), b"x" * MAX_ID_BYTES),
    *SAME_PREFIX,
]
ids = st.binary(min_size=1) | st.text(min_size=1).map(lambda text: text.encode(errors="replace"))


def test_row_key_vectors():
    # CRC-32 as in zlib and PNG, its upper half in hex; clients in other languages compute the same values.
    assert row_keys([b"42", b"007", b"7", "é".encode(), b"a\\tb"]) == [
        b"3224:42",
        b"bcd1:007",
        b"6abf:7",
        "0e04:é".encode(),
        b"2f97:a\\tb",
    ]


@given(st.lists(ids, min_size=1, unique=True))
def test_row_keys_are_distinct_and_lead_back_to_the_id(ids):
    escaped = [escape(record_id) for record_id in ids]
    keys = row_keys(escaped)
    assert len(set(keys)) == len(ids)
    assert [unescape(record_id(key)) for key in keys] == ids
    assert all(int(key[:4], 16) == zlib.crc32(record_id) >> 16 for key, record_id in zip(keys, escaped, strict=True))


def test_any_id_comes_back_and_the_real_sort_orders_keys_as_bytes():
    assert len(SAME_PREFIX) == len({key[:5] for key in row_keys(SAME_PREFIX)} | set(SAME_PREFIX)) - 1
    keys = row_keys(list(map(escape, ODD_IDS)))
    assert [unescape(record_id(key)) for key in keys] == ODD_IDS
    assert len(set(keys)) == len(ODD_IDS)
    # Each key comes twice; the text after the key does not affect the order, as the sort is stable.
    lines = [b"%b\t%d\t\\N\t\\N\t1\t\\N\n" % (key, -turn) for turn in range(2) for key in keys]
    # The same arguments as in a shell: LC_ALL=C sort -t$'\t' -k1,1 -s
    command = ["sort", "-t", "\t", "-k1,1", "-s"]
    process = subprocess.run(command, input=b"".join(lines), env={**os.environ, "LC_ALL": "C"}, capture_output=True)
    assert process.stdout.split(b"\n")[:-1] == [
        line[:-1] for line in sorted(lines, key=lambda line: line.split(b"\t")[0])
    ]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (b"", "the ID is empty"),
        (NULL, "the ID is NULL"),
        (b"x" * (MAX_ID_BYTES + 1), "the ID is 32,763 bytes long; a row key can hold 32,762"),
        ("é".encode() * (MAX_ID_BYTES // 2 + 1), "the ID is 32,764 bytes long; a row key can hold 32,762"),
        # Its escaped text is too long.
        (escape(b"\t" * (MAX_ID_BYTES // 2 + 1)), "the ID is 32,764 bytes long; a row key can hold 32,762"),
        (b"a\rb", "the ID is not escaped as COPY escapes it"),
        (b"a\\.b", "the ID is not escaped as COPY escapes it"),
        (b"a\\N", "the ID is not escaped as COPY escapes it"),
        (b"a\\", "the ID is not escaped as COPY escapes it"),
        (b"\xff", "the ID is not valid UTF-8"),
        (b"\xed\xa0\x80", "the ID is not valid UTF-8"),  # a surrogate
        (b"\xc0\x80", "the ID is not valid UTF-8"),  # an overlong NUL
        (b"e\xcc", "the ID is not valid UTF-8"),  # cut off
    ],
)
def test_an_id_unfit_for_a_row_key_is_named_with_the_reason(field, reason):
    assert why_unfit(field) == reason
    assert unfit([b"1", field, b"2"]) == {1: reason}


def test_all_other_ids_are_fit_whatever_they_hold():
    assert unfit(list(map(escape, ODD_IDS))) == {}
    assert unfit([]) == {}


# Fields as in a line, without tabs and line feeds.
fields = (
    st.binary(max_size=6).map(lambda field: field.replace(b"\t", b"").replace(b"\n", b""))
    | ids.map(escape)
    | st.sampled_from([b"", NULL, b"\\", b"a\\tb", b"a\\qb", b"\b", b"\f", b"\v", b"\r", b"x" * 32762, b"x" * 32763])
)


@given(st.lists(fields))
def test_the_fast_way_to_find_unfit_ids_agrees_with_the_exact_one(fields):
    assert unfit(fields) == {index: reason for index, field in enumerate(fields) if (reason := why_unfit(field))}


@given(ids)
def test_an_exported_id_is_unfit_only_if_it_is_too_long_or_not_utf_8(value):
    fit = len(escape(value)) <= MAX_ID_BYTES and value.decode(errors="replace").encode() == value
    assert (why_unfit(escape(value)) is None) == fit


@given(st.lists(fields.filter(lambda field: not why_unfit(field)), unique=True))
def test_two_fit_spellings_are_two_ids(fields):
    assert len({unescape(field) for field in fields}) == len(fields)


def test_regions_are_even_for_any_kind_of_id():
    kinds = ("{}", "{:012}", "customer-{}", "{0:x}-0000-4000-{0:x}")
    for kind in kinds:
        keys = row_keys([kind.format(number).encode() for number in range(1, 80_001)])
        points = split_points(8)
        regions = Counter(sum(key >= point for point in points) for key in keys)
        assert len(regions) == 8
        assert max(abs(count - 10_000) for count in regions.values()) < 300, kind


def test_split_points():
    assert split_points(1) == []
    assert split_points(3) == [b"5555", b"aaaa"]
    assert split_points(4) == [b"4000", b"8000", b"c000"]
    assert split_points(7) == [b"2492", b"4924", b"6db6", b"9248", b"b6da", b"db6c"]
