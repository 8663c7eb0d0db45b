"""A part's lines in batches: bounded, each within one region; a load can continue after any batch."""

import io
from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import batches as module
from loader.__main__ import skip
from loader.batches import BATCH_BYTES, batches
from predictions.errors import InputError
from predictions.formats.record_line import join_lines, read_blocks
from predictions.storage import Storage

BYTES = 100  # of a batch in these tests


@pytest.fixture(autouse=True, scope="module")
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_BYTES", BYTES)
        yield


@st.composite
def parts(draw):
    """Draw a part's bytes, its bounds, and the start keys of the table's regions, some of which were split since."""
    hexes = st.integers(0, 0xFFFF).map(lambda number: b"%04x" % number)
    points = sorted(draw(st.sets(hexes, max_size=3)))
    ids = st.binary(max_size=8).map(lambda text: b":%b" % text.hex().encode())
    prefixes = hexes | st.sampled_from([b"0000", *points])
    keys = sorted(draw(st.sets(st.tuples(prefixes, ids).map(b"".join), max_size=60)))
    bounds = draw(st.sampled_from(list(pairwise([b"", *points, b""]))))
    keys = [key for key in keys if key >= bounds[0] and (not bounds[1] or key < bounds[1])]
    splits = draw(st.sets(hexes | st.sampled_from(keys or [b"0000"]), max_size=6))
    payloads = st.integers(0, 2 * BYTES).map(lambda size: b"\t" + b"x" * size) | st.just(b"\t\\N")
    return join_lines([*(key + draw(payloads) for key in keys), b""])[:-1], bounds, sorted({b"", *points, *splits})


def cut(data, bounds, starts, offset=0, size=1 << 10):
    blocks = skip(io.BytesIO(data), offset) if size is None else read_blocks(io.BytesIO(data[offset:]), size, end=b"")
    return list(batches(blocks, "part-00001", offset, bounds, starts))


def keys(batch):
    return [line.partition(b"\t")[0] for line in batch.lines]


@given(parts(), st.integers(1, 400))
def test_batches_are_the_part_and_know_where_they_end(part, size):
    data, bounds, starts = part
    part_batches = cut(data, bounds, starts, size=size)
    ends = [0, *(batch.end for batch in part_batches)]
    assert [data[start:end] for start, end in pairwise(ends)] == [join_lines(batch.lines) for batch in part_batches]
    assert ends[-1] == len(data)
    assert part_batches == cut(data, bounds, starts)  # the size of the blocks does not matter


@given(parts())
def test_a_batch_is_bounded_and_lies_in_one_region(part):
    data, bounds, starts = part
    part_batches = cut(data, bounds, starts)
    for batch in part_batches:
        assert len(batch.lines) == 1 or len(b"\n".join(batch.lines)) <= BYTES
        assert len({bisect_right(starts, key) for key in keys(batch)}) == 1
    for one, next_one in pairwise(part_batches):  # and no smaller than necessary
        full = len(b"\n".join([*one.lines, next_one.lines[0]])) > BYTES
        assert full or bisect_right(starts, keys(one)[0]) != bisect_right(starts, keys(next_one)[0])


@given(parts(), st.integers(1, 4))
def test_a_batch_has_no_more_lines_than_are_asked_for(part, rows):
    data, bounds, starts = part
    part_batches = list(batches([data] if data else [], "part-00001", 0, bounds, starts, rows))
    assert all(0 < len(batch.lines) <= rows for batch in part_batches)
    assert b"".join(join_lines(batch.lines) for batch in part_batches) == data


@given(parts(), st.data())
def test_reading_after_any_batch_gives_the_remaining_lines(part, data):
    whole, bounds, starts = part
    ends = [0, *(batch.end for batch in cut(whole, bounds, starts))]
    offset = data.draw(st.sampled_from(ends))
    rest = cut(
        whole, bounds, data.draw(st.sampled_from([starts, [b""]])), offset, data.draw(st.sampled_from([7, None]))
    )
    assert b"".join(join_lines(batch.lines) for batch in rest) == whole[offset:]
    assert [batch.end for batch in rest][-1:] == ([len(whole)] if offset < len(whole) else [])


def test_a_batch_of_the_real_size_takes_what_a_framed_server_takes():
    """A request is one and a half times as large as its lines; `hbase thrift start -f` accepts 2 MB."""
    assert BATCH_BYTES * 1.5 < 2 << 20


BOUNDS = (b"4000", b"8000")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"5000:b", b"5000:a"], "row key b'5000:a' comes after b'5000:b'"),
        ([b"5000:a", b"5000:a"], "row key b'5000:a' comes after b'5000:a'"),
        ([b"3fff:a"], "row key b'3fff:a' belongs to another part: this one has row keys from '4000' to before '8000'"),
        ([b"5000:a", b"8000:"], "row key b'8000:' belongs to another part"),
        ([b"unreadable:part-00000+0:000000000001"], "belongs to another part"),
        ([b"5000:a", b""], "row key b'' comes after b'5000:a'"),
    ],
)
def test_a_line_that_is_not_where_it_belongs_is_named_by_its_key(lines, message):
    with pytest.raises(InputError) as error:
        cut(b"".join(line + b"\t1\n" if line else b"\n" for line in lines), BOUNDS, [b"", b"4000", b"8000"])
    assert str(error.value).startswith("part-00001: ")
    assert message in str(error.value)


def test_lines_before_a_misplaced_line_are_not_lost():
    lines = [b"4000:%03d\tx" % number for number in range(100)]
    part_batches = []
    with pytest.raises(InputError):
        part_batches.extend(batches([join_lines([*lines, b"4000:\tx"])], "part-00001", 0, BOUNDS, [b""]))
    batch_lines = [line for batch in part_batches for line in batch.lines]
    assert batch_lines == lines[: len(batch_lines)]
    assert len(batch_lines) > 90


def test_the_first_and_the_last_part_are_open_ended():
    data = b"0000:\t1\nffff:~\t1\n"
    assert [batch.end for batch in cut(data, (b"", b""), [b""])] == [len(data)]


@given(parts().filter(lambda part: part[0]), st.data())
def test_a_part_that_is_cut_off_within_a_line_is_refused(part, data):
    whole, bounds, starts = part
    short = whole[: data.draw(st.integers(1, len(whole) - 1).filter(lambda end: whole[end - 1 : end] != b"\n"))]
    offset = data.draw(st.sampled_from([0, short.rfind(b"\n") + 1]))
    with pytest.raises(InputError, match="it ends in the middle of a line: ") as error:
        cut(short, bounds, starts, offset, None)
    assert repr(short[short.rfind(b"\n") + 1 :][:80]) in str(error.value)


def test_blocks_of_a_release_end_a_cut_off_line_only_by_default(tmp_path):
    folder = Storage(str(tmp_path), "orders").new_release()
    path = tmp_path / "orders" / folder.release / "part-00000"
    path.write_bytes(b"4000:a\t1\n4000:b\t2")
    assert list(folder.blocks(str(path), 9, end=b"")) == [b"4000:b\t2"]
    assert list(folder.blocks(str(path), 9)) == [b"4000:b\t2\n"]


@given(st.binary(max_size=50), st.integers(0, 60))
def test_bytes_before_the_offset_are_skipped(data, offset):
    if offset > len(data):
        with pytest.raises(InputError, match="shorter than its checkpoint says"):
            list(skip(io.BytesIO(data), offset))
    else:
        assert b"".join(skip(io.BytesIO(data), offset)) == data[offset:]
