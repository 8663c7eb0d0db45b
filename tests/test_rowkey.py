import zlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from loader.regions import split_points
from predictions.records import escape
from predictions.rowkey import record_id, row_keys


def test_row_key_vectors():
    # CRC-32 as in zlib and PNG, its upper half in hex; clients in other languages compute the same.
    assert row_keys([b"42", b"007", b"7", "é".encode(), b"a\\tb"]) == [
        b"3224:42",
        b"bcd1:007",
        b"6abf:7",
        "0e04:é".encode(),
        b"2f97:a\\tb",
    ]


@given(st.lists(st.binary(min_size=1), min_size=1, unique=True))
def test_row_keys_are_distinct_and_lead_back_to_the_id(ids):
    ids = [escape(record_id) for record_id in ids]
    keys = row_keys(ids)
    assert len(set(keys)) == len(ids)
    assert list(map(record_id, keys)) == ids
    assert all(int(key[:4], 16) == zlib.crc32(one) >> 16 for key, one in zip(keys, ids, strict=True))


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
