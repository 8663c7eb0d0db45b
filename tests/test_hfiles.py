"""HFiles, written and read by our own code; in `test_hfiles_hbase.py`, HBase reads them."""

import random
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.errors import InputError, VerificationError
from predictions.formats.byte_strings import ByteStrings
from predictions.formats.hfile.blocks import CHECKED_BYTES, Codec
from predictions.formats.hfile.reader import HFileReader
from predictions.formats.hfile.trailer import TRAILER_BYTES, Field, decode_trailer, encode_trailer
from predictions.formats.hfile.writer import HFileWriter
from predictions.formats.row_key import MAX_KEY_BYTES

TIME = 1795366709000
SMALL = {"block_bytes": 300, "index_bytes": 200}  # so that a small file has many blocks and levels

keys = st.binary(min_size=1, max_size=40)
names = st.binary(max_size=10)
values = st.none() | st.binary(max_size=50)


@st.composite
def tables(draw):
    """Draw sorted rows as the arguments of a writer: keys, columns, times; each row has a cell."""
    row_keys = sorted(draw(st.sets(keys, min_size=1, max_size=60)))
    columns = {
        name: draw(st.lists(values, min_size=len(row_keys), max_size=len(row_keys)))
        for name in draw(st.sets(names, max_size=4))
    }
    columns[b"record"] = draw(st.lists(st.binary(max_size=20), min_size=len(row_keys), max_size=len(row_keys)))
    one, other = draw(st.integers(0, 1 << 50)), draw(st.integers(0, 1 << 50))
    times = draw(st.lists(st.sampled_from([one, other]), min_size=len(row_keys), max_size=len(row_keys)))
    return row_keys, columns, times


def cells(keys, columns, times, family=b"p"):
    """Return the cells that a reader must find."""
    return [
        (key, family, name, time, columns[name][row])
        for row, (key, time) in enumerate(zip(keys, times, strict=True))
        for name in sorted(columns)
        if columns[name][row] is not None
    ]


def write(path, *chunks, family=b"p", **options):
    with HFileWriter(str(path), family, **options) as file:
        for chunk in chunks:
            file.write(*arrays(*chunk))
    return file.facts


def arrays(keys, columns, times):
    """Return a table as a writer takes it."""
    return (
        ByteStrings.of(keys),
        {name: ByteStrings.of(column) for name, column in columns.items()},
        np.array(times, np.int64),
    )


def read(path):
    with open(path, "rb") as file:
        return [tuple(cell) for cell in HFileReader(file, "x.hfile").read()]


def orders(number, start=None):
    """Return the first rows of the orders, or the thousand from `start` on."""
    rows = range(number) if start is None else range(start, start + 1000)
    return (
        [b"%04x:%04d" % (row, row) for row in rows],
        {
            b"prediction": [b"%d" % (row % 2) for row in rows],
            b"record": [b"%016x" % row for row in rows],
        },
        [TIME] * len(rows),
    )


@given(tables(), st.sampled_from(Codec), st.sampled_from([{}, SMALL]), st.data())
def test_what_was_written_is_read(tmp_path_factory, table, codec, options, data):
    path = tmp_path_factory.mktemp("hfile") / "part-00000"
    cut = data.draw(st.integers(0, len(table[0])))
    columns = table[1]
    chunks = [
        (table[0][part], {name: column_values[part] for name, column_values in columns.items()}, table[2][part])
        for part in (slice(0, cut), slice(cut, None))
    ]
    facts = write(path, *chunks, codec=codec, **options)
    expected = cells(*table)
    assert read(path) == expected
    assert (facts.rows, facts.cells, facts.size) == (len(table[0]), len(expected), path.stat().st_size)
    assert (facts.first, facts.last) == (table[0][0], table[0][-1])


def test_the_same_rows_give_the_same_bytes_in_whatever_pieces_they_come(tmp_path):
    keys, columns, times = orders(5000)
    columns[b"record"][1234] = b"larger than a block" * 100
    whole = write(tmp_path / "whole", (keys, columns, times), **SMALL)
    pieces = [
        (keys[i : i + 7], {name: v[i : i + 7] for name, v in columns.items()}, times[i : i + 7])
        for i in range(0, 5000, 7)
    ]
    assert write(tmp_path / "pieces", *pieces, **SMALL) == whole
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


@pytest.mark.parametrize(
    ("number", "options", "levels"),
    [(1, {}, 1), (2000, {}, 1), (2000, {"block_bytes": 1000, "index_bytes": 4000}, 2), (2000, SMALL, 3)],
)
def test_the_index_has_as_many_levels_as_it_needs(tmp_path, number, options, levels):
    write(tmp_path / "f", orders(number), **options)
    with open(tmp_path / "f", "rb") as file:
        reader = HFileReader(file, "f")
        assert (
            reader.trailer[Field.INDEX_LEVELS] >= levels if levels > 2 else reader.trailer[Field.INDEX_LEVELS] == levels
        )
        assert len(list(reader.read())) == 2 * number


def test_memory_does_not_grow_with_the_file(tmp_path, full):
    """Writer and reader keep few keys, of 2,000 as of 20,000 blocks (with --full, five times as many)."""

    def peaks(number):
        chunks = [orders(number, start) for start in range(0, number, 1000)]
        sizes = []
        for work in (lambda: write(tmp_path / "f", *chunks, block_bytes=10, index_bytes=20_000), verify):
            tracemalloc.start()
            work()
            sizes.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return sizes

    def verify():
        with open(tmp_path / "f", "rb") as file:
            reader = HFileReader(file, "f")
            for _cell in reader.read():
                pass
            assert reader.blocks == reader.cells  # each cell is larger than a block should be

    rows = 5000 if full else 1000
    growth = [many - few for few, many in zip(peaks(rows), peaks(10 * rows), strict=True)]
    assert max(growth) < 100 * rows, growth  # the entries of all blocks would take forty times as much


def test_large_values_stand_in_blocks_of_their_own(tmp_path):
    table = [b"a", b"b"], {b"x": [b"1" * 5_000_000, b"2"], b"y": [b"3" * 5_000_000, b""]}, [TIME, TIME]
    write(tmp_path / "f", table)
    assert read(tmp_path / "f") == cells(*table)
    assert max(block.size for block in blocks(tmp_path / "f")) < 5_100_000


def blocks(path):
    """Yield the blocks of the data section."""
    with open(path, "rb") as file:
        reader = HFileReader(file, "f")
        offset = 0
        while offset < reader.trailer[Field.ROOT_INDEX_OFFSET]:
            yield (block := reader.block(offset))
            offset += block.size


@pytest.mark.parametrize(
    ("row_keys", "message"),
    [
        ([b"a", b"c", b"b"], "row b'b' comes after b'c': sort the rows"),
        ([b"a", b"b", b"b"], "row b'b' comes after b'b': .* keep one row per key"),
        (
            [b"a", b"b" * (MAX_KEY_BYTES + 1)],
            r"row b'bbbb.*: its key has 32,768 bytes, but HBase allows at most 32,767",
        ),
        ([b"", b"b"], "the row after b'' has an empty key"),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_rows_that_do_not_fit_are_named_and_there_is_no_file(tmp_path, row_keys, message, apart):
    chunks = [[key] for key in row_keys] if apart else [row_keys]
    with pytest.raises(InputError, match=message):
        write(tmp_path / "f", *((chunk, {b"x": [b"1"] * len(chunk)}, [TIME] * len(chunk)) for chunk in chunks))
    assert list(tmp_path.iterdir()) == []


def test_the_longest_key_is_taken(tmp_path):
    table = [b"k" * MAX_KEY_BYTES], {b"x": [b"1"]}, [TIME]
    write(tmp_path / "f", table)
    assert read(tmp_path / "f") == cells(*table)


def test_a_row_without_cells_is_named(tmp_path):
    with pytest.raises(InputError, match="row b'b' has no cells"):
        write(tmp_path / "f", ([b"a", b"b"], {b"x": [b"1", None]}, [TIME, TIME]))
    assert list(tmp_path.iterdir()) == []


def test_a_time_before_1970_is_named_with_its_row(tmp_path):
    with pytest.raises(InputError, match="row b'b': -1 is not a time"):
        write(tmp_path / "f", ([b"a", b"b"], {b"x": [b"1", b"2"]}, [TIME, -1]))
    write(tmp_path / "f", ([b"a"], {b"x": [b"1"]}, [(1 << 63) - 1]))
    assert read(tmp_path / "f") == [(b"a", b"p", b"x", (1 << 63) - 1, b"1")]


@pytest.mark.parametrize(("times", "values"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_as_many_values_and_times_as_keys(tmp_path, times, values):
    with pytest.raises(ValueError, match="2 keys need 2 times"):
        write(tmp_path / "f", ([b"a", b"b"], {b"x": [b"1"] * values}, [TIME] * times))


def test_an_earlier_file_does_not_stay(tmp_path):
    write(tmp_path / "f", orders(3))
    assert write(tmp_path / "f", ([], {}, [])) is None
    assert list(tmp_path.iterdir()) == []


def test_without_rows_there_is_no_file(tmp_path):
    assert write(tmp_path / "f", ([], {}, [])) is None
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_no_file(tmp_path):
    def interrupted(path):
        with HFileWriter(str(path), b"p") as file:
            file.write(*arrays(*orders(10)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", Codec)
def test_a_flipped_byte_anywhere_is_found(tmp_path, codec):
    write(tmp_path / "f", orders(20), codec=codec, block_bytes=500, index_bytes=100)
    good = (tmp_path / "f").read_bytes()
    for position in range(len(good)):
        for change in (0xFF, 0x01):
            bad = bytearray(good)
            bad[position] ^= change
            with pytest.raises(VerificationError, match=r"f: at byte [\d,]+: "):
                list(HFileReader(BytesIO(bad), "f").read())


@pytest.mark.parametrize("field", Field)
@pytest.mark.parametrize("value", [0, 1, 2, 1 << 70])
def test_a_trailer_that_says_something_else_is_found(tmp_path, field, value):
    write(tmp_path / "f", orders(60), **SMALL)
    good = (tmp_path / "f").read_bytes()
    fields = decode_trailer(good[-TRAILER_BYTES:])
    if fields[field] == value:
        value += 1
    bad = good[:-TRAILER_BYTES] + encode_trailer(fields | {field: value})
    with pytest.raises(VerificationError):
        list(HFileReader(BytesIO(bad), "f").read())


def test_a_file_that_was_cut_off_is_found(tmp_path):
    write(tmp_path / "f", orders(60), **SMALL)
    good = (tmp_path / "f").read_bytes()
    for size in (0, 10, TRAILER_BYTES - 1, TRAILER_BYTES, len(good) // 2, len(good) - 1):
        with pytest.raises(VerificationError):
            list(HFileReader(BytesIO(good[:size]), "f").read())


def test_blocks_that_were_left_out_or_exchanged_are_found(tmp_path):
    """Each block and its checksum are right; only their order is wrong."""
    write(tmp_path / "f", orders(60), block_bytes=700)
    good = (tmp_path / "f").read_bytes()
    first, second, *_rest = (block.size for block in blocks(tmp_path / "f"))
    assert first == second
    exchanged = good[first : 2 * first] + good[:first] + good[2 * first :]
    with pytest.raises(VerificationError, match="the block gives a wrong offset for the previous one"):
        list(HFileReader(BytesIO(exchanged), "f").read())
    twice = good[:first] + good[:first] + good[2 * first :]
    with pytest.raises(VerificationError):
        list(HFileReader(BytesIO(twice), "f").read())


def test_checksums_are_of_16384_bytes_each(tmp_path):
    write(tmp_path / "f", ([b"a"], {b"x": [random.Random(1).randbytes(100_000)]}, [TIME]))
    data = (tmp_path / "f").read_bytes()
    size = int.from_bytes(data[29:33], "big")
    sums = data[size : size + 4 * -(-size // CHECKED_BYTES)]
    for number, start in enumerate(range(0, size, CHECKED_BYTES)):
        part = data[start : min(start + CHECKED_BYTES, size)]
        assert int.from_bytes(sums[4 * number : 4 * number + 4], "big") == zlib.crc32(part)
    assert next(blocks(tmp_path / "f")).size == size + len(sums)
