"""Write an HFile from sorted rows, in one pass."""

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from operator import lt
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from predictions.errors import InputError
from predictions.formats.byte_strings import ByteStrings
from predictions.formats.hfile.blocks import (
    DATA,
    FILE_INFO,
    HEADER_BYTES,
    INNER_INDEX,
    LEAF_INDEX,
    ROOT_INDEX,
    Codec,
    encode_block,
)
from predictions.formats.hfile.cells import LENGTH_BYTES, encode_rows, first_key, last_key, split_cells
from predictions.formats.hfile.index import Entry, encode_index, encode_middle, encode_root, entry_size
from predictions.formats.hfile.trailer import TRAILER_BYTES, Field, encode_info, encode_trailer
from predictions.formats.row_key import MAX_KEY_BYTES

BLOCK_BYTES = 64 << 10
INDEX_BYTES = 128 << 10
MIN_INDEX_ENTRIES = 16  # of an inner index block, so that each level is smaller than the one below
LAST_KEY = b"hfile.LASTKEY"


@dataclass(frozen=True)
class Facts:
    """The facts about an HFile that was written.

    Args:
        rows: number of rows.
        cells: number of cells.
        size: size of the file in bytes.
        first: first row key.
        last: last row key.
        sha256: SHA-256 of the file, in hex.
    """

    rows: int
    cells: int
    size: int
    first: bytes
    last: bytes
    sha256: str


class HFileWriter:
    """A context manager that writes one HFile; after an exception, or without rows, there is no file.

    Memory is constant, except for one key per leaf of the index; with short keys, a leaf covers 200 MB of rows. The
    same input gives the same bytes: the creation time in the file is the newest timestamp of its cells.

    Args:
        path: the file's path; the file appears there once it is complete.
        family: the column family of all cells.
        codec: how blocks are compressed.
        block_bytes: a data block ends with the row that brings it to this size; a larger row is split between cells.
        index_bytes: an index block ends with the entry that brings it to this size.
    """

    def __init__(
        self,
        path: str,
        family: bytes,
        codec: Codec = Codec.NONE,
        block_bytes: int = BLOCK_BYTES,
        index_bytes: int = INDEX_BYTES,
    ) -> None:
        self.facts: Facts | None = None  # None until the file is complete
        self._path, self._family = path, family
        self._block_bytes = block_bytes
        self._rows = self._cells = self._data_bytes = self._value_bytes = self._newest = 0
        self._first = self._last = b""
        self._pieces: list[memoryview] = []  # the next data block
        self._size = 0  # bytes of these pieces
        self._last_piece = b""  # the last row, or the last cell of a large one
        with suppress(FileNotFoundError):
            os.unlink(path)  # of an earlier run
        self._file = open(f"{path}.part", "wb")  # noqa: SIM115, __exit__ closes it
        self._blocks = _Blocks(self._file, codec)
        self._index = _Index(self._blocks, index_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is None and self._rows:
                    self._finish()
            if self.facts:
                os.replace(self._file.name, self._path)
        finally:
            if os.path.exists(self._file.name):
                os.unlink(self._file.name)

    def write(self, keys: ByteStrings, columns: Mapping[bytes, ByteStrings], times: np.ndarray) -> None:
        """Write rows, column by column.

        Args:
            keys: the row keys, ascending, and greater than all keys written before.
            columns: for each qualifier, the value in each row; missing if the row has no such cell.
            times: for each row, the timestamp of its cells, in milliseconds since 1970 (shape: rows; int64).

        Raises:
            InputError: a row key is out of order, empty or too long, a row has no cells, or its time is before 1970;
                the message names the row.
            ValueError: the number of values or times differs from the number of keys.
        """
        rows, rows_before = len(keys.sizes), self._rows
        if {len(times), *(len(values.sizes) for values in columns.values())} != {rows}:
            raise ValueError(f"{rows} keys need {rows} times, and {rows} values in each column")
        if not rows:
            return
        self._check_keys(keys)
        if times.min() < 0:
            row = int(times.argmin())
            raise InputError(f"row {keys.value(row)!r}: {times[row]} is not a time in milliseconds since 1970")
        for encoded in encode_rows(keys, self._family, columns, times):
            if not encoded.sizes.all():
                row = self._rows - rows_before + int(encoded.sizes.argmin())
                raise InputError(f"row {keys.value(row)!r} has no cells, so an HFile cannot hold it")
            self._append(encoded.data, encoded.sizes)
            self._rows += len(encoded.sizes)
            self._cells += encoded.cells
            self._value_bytes += encoded.value_bytes
        self._newest = max(self._newest, int(times.max()))

    def _check_keys(self, strings: ByteStrings) -> None:
        keys = strings.values
        if not (self._last < keys[0] and all(map(lt, keys, keys[1:]))):
            previous, key = next(pair for pair in pairwise([self._last, *keys]) if not pair[0] < pair[1])
            if not key:
                raise InputError(f"the row after {previous!r} has an empty key")
            raise InputError(f"row {key!r} comes after {previous!r}: sort the rows, and keep one row per key")
        if strings.sizes.max() > MAX_KEY_BYTES:
            key = max(keys, key=len)
            raise InputError(
                f"row {key[:80]!r}...: its key has {len(key):,} bytes, but HBase allows at most {MAX_KEY_BYTES:,}"
            )
        self._first, self._last = self._first or keys[0], keys[-1]

    def _append(self, data: memoryview, sizes: np.ndarray) -> None:
        """Add encoded rows of these sizes to the data blocks; a row that is larger than a block is split into cells."""
        limit, ends = self._block_bytes, sizes.cumsum()
        if (large := sizes > limit).any():
            bounds = zip((ends - sizes)[large].tolist(), ends[large].tolist(), strict=True)
            rows = [(start, map(len, split_cells(bytes(data[start:stop])))) for start, stop in bounds]
            cell_ends = [list(accumulate(cells, initial=start))[1:] for start, cells in rows]
            ends = np.unique([*ends.tolist(), *chain.from_iterable(cell_ends)])
        start = 0
        while start < len(data):
            piece = min(int(ends.searchsorted(start + limit - self._size)), len(ends) - 1)
            stop = int(ends[piece])
            self._pieces.append(data[start:stop])
            self._size += stop - start
            self._last_piece = bytes(data[int(ends[piece - 1]) if piece else 0 : stop])
            start = stop
            if self._size >= limit:
                self._end_block()

    def _end_block(self) -> None:
        data = b"".join(self._pieces)
        self._index.add(self._blocks.write(DATA, data, first_key(data)))
        self._data_bytes += self._size
        self._pieces, self._size = [], 0

    def _finish(self) -> None:
        if self._pieces:
            self._end_block()
        blocks = self._blocks
        trailer = {Field.FIRST_DATA_OFFSET: 0, Field.LAST_DATA_OFFSET: blocks.last[DATA], Field.CELLS: self._cells}
        trailer |= self._index.finish()
        blocks.write(ROOT_INDEX, b"")  # the meta index
        trailer[Field.META_ENTRIES] = 0
        trailer[Field.FILE_INFO_OFFSET] = blocks.write(FILE_INFO, encode_info(self._info())).offset
        trailer[Field.SIZE] = blocks.unpacked + TRAILER_BYTES
        trailer[Field.CODEC] = blocks.codec.value
        blocks.put(encode_trailer(trailer))
        sha256 = blocks.digest.hexdigest()
        self.facts = Facts(self._rows, self._cells, blocks.offset, self._first, self._last, sha256)

    def _info(self) -> dict[bytes, bytes]:
        time = struct.pack(">q", self._newest)
        key_bytes = self._data_bytes - self._value_bytes - LENGTH_BYTES * self._cells
        return {
            LAST_KEY: last_key(self._last_piece),
            b"hfile.AVG_KEY_LEN": struct.pack(">i", key_bytes // self._cells),
            b"hfile.AVG_VALUE_LEN": struct.pack(">i", self._value_bytes // self._cells),
            b"hfile.CREATE_TIME_TS": time,
            b"BULKLOAD_TIMESTAMP": time,
        }


class _Blocks:
    """Writes the blocks of a file, and keeps track of offsets, sizes and the file's SHA-256."""

    def __init__(self, file: BinaryIO, codec: Codec) -> None:
        self.codec = codec
        self.offset = 0
        self.unpacked = 0  # size of the blocks before compression
        self.last: dict[bytes, int] = {}  # offset of the last block of each kind
        self.digest = hashlib.sha256()
        self._file = file

    def write(self, kind: bytes, data: bytes, key: bytes = b"") -> Entry:
        """Write a block and return its index entry."""
        block = encode_block(kind, data, self.last.get(kind, -1), self.codec)
        entry = Entry(self.offset, len(block), key)
        self.last[kind] = self.offset
        self.unpacked += HEADER_BYTES + len(data)
        self.put(block)
        return entry

    def put(self, data: bytes) -> None:
        """Append bytes to the file, and count and hash them."""
        self._file.write(data)
        self.digest.update(data)
        self.offset += len(data)


class _Index:
    """Writes the index: each leaf once it is large enough, between data blocks, and the upper levels at the end."""

    def __init__(self, blocks: _Blocks, index_bytes: int) -> None:
        self._blocks = blocks
        self._index_bytes = index_bytes
        self._size = 0  # bytes of all index blocks
        self._leaf: list[Entry] = []  # entries of the next leaf
        self._leaf_size = 0
        self._leaves: list[Entry] = []
        self._counts: list[int] = []  # number of data blocks of each leaf

    def add(self, block: Entry) -> None:
        """Add the data block that was written last."""
        self._leaf.append(block)
        self._leaf_size += entry_size(block)
        if self._leaf_size >= self._index_bytes:
            self._end_leaf()

    def finish(self) -> dict[Field, int]:
        """Write the rest of the index, and return its fields in the trailer."""
        root, levels, middle = self._leaf, 1, b""
        if self._leaves:
            if self._leaf:
                self._end_leaf()
            root, levels, middle = self._leaves, 2, encode_middle(self._leaves, self._counts)
            while len(root) > MIN_INDEX_ENTRIES and len(encode_root(root)) > self._index_bytes:
                root, levels = [self._write(INNER_INDEX, group) for group in self._groups(root)], levels + 1
        data = encode_root(root)
        self._size += len(data)
        return {
            Field.ROOT_INDEX_OFFSET: self._blocks.write(ROOT_INDEX, data + middle).offset,
            Field.ROOT_ENTRIES: len(root),
            Field.INDEX_LEVELS: levels,
            Field.INDEX_SIZE: self._size,
        }

    def _end_leaf(self) -> None:
        self._leaves.append(self._write(LEAF_INDEX, self._leaf))
        self._counts.append(len(self._leaf))
        self._leaf, self._leaf_size = [], 0

    def _write(self, kind: bytes, entries: Sequence[Entry]) -> Entry:
        data = encode_index(entries)
        self._size += len(data)
        return self._blocks.write(kind, data, entries[0].key)

    def _groups(self, entries: Sequence[Entry]) -> Iterator[list[Entry]]:
        group: list[Entry] = []
        for entry in entries:
            group.append(entry)
            if len(group) >= MIN_INDEX_ENTRIES and sum(map(entry_size, group)) >= self._index_bytes:
                yield group
                group = []
        if group:
            yield group
