"""Read an HFile that `predictions.formats.hfile.writer` wrote, and verify every byte of it."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from predictions.errors import VerificationError
from predictions.formats.hfile.blocks import (
    DATA,
    FILE_INFO,
    HEADER_BYTES,
    INNER_INDEX,
    LEAF_INDEX,
    ROOT_INDEX,
    Block,
    Codec,
    block_size,
    decode_block,
)
from predictions.formats.hfile.cells import KeyValue, decode_cells, decode_key, first_key
from predictions.formats.hfile.index import Entry, decode_index, decode_root, encode_middle, encode_root
from predictions.formats.hfile.trailer import TRAILER_BYTES, Field, decode_info, decode_trailer
from predictions.formats.hfile.writer import LAST_KEY


class HFileReader:
    """A reader of one HFile; when created, it reads and verifies the trailer and the upper levels of the index.

    Args:
        file: the file to read from; it must be seekable.
        name: the name of the file, for messages.

    Raises:
        VerificationError: the file is damaged; the message says where.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.size = file.seek(0, os.SEEK_END)
        self.rows = self.cells = self.blocks = 0  # numbers of rows, cells and data blocks read so far
        with self._at(trailer := max(0, self.size - TRAILER_BYTES)):
            file.seek(trailer)
            self.trailer = decode_trailer(file.read())
            self.codec = Codec(self.trailer[Field.CODEC])
            if self.trailer[Field.INDEX_LEVELS] < 1 or self.trailer[Field.META_ENTRIES]:
                raise ValueError("the trailer says that there is no index, or that there are meta blocks")
        root_offset = self.trailer[Field.ROOT_INDEX_OFFSET]
        root = self.block(root_offset, ROOT_INDEX)
        meta = self.block(root_offset + root.size, ROOT_INDEX)
        info = self.block(root_offset + root.size + meta.size, FILE_INFO)
        with self._at(self.trailer[Field.FILE_INFO_OFFSET]):
            self.info = decode_info(info.data)
            if self.trailer[Field.FILE_INFO_OFFSET] + info.size != trailer:
                raise ValueError("the file info does not end where the trailer begins")
        self._unpacked = TRAILER_BYTES + sum(HEADER_BYTES + len(block.data) for block in (root, meta, info))
        with self._at(root_offset):
            self._root = root.data
            self._entries = decode_root(root.data, self.trailer[Field.ROOT_ENTRIES])
            self._index_bytes = len(encode_root(self._entries))
        for _level in range(self.trailer[Field.INDEX_LEVELS], 2, -1):
            self._entries = [lower for entry in self._entries for lower in self._inner_entries(entry)]

    def read(self) -> Iterator[KeyValue]:
        """Yield all cells in order; call it only once.

        Raises:
            VerificationError: a block, the order of the cells or a count differs from what was written.
        """
        offset, stop = self.trailer[Field.FIRST_DATA_OFFSET], self.trailer[Field.ROOT_INDEX_OFFSET]
        last_offsets: dict[bytes, int] = {}  # of each kind of block
        index = _Index(self._entries, self.trailer[Field.INDEX_LEVELS] > 1)
        previous: KeyValue | None = None
        while offset < stop:
            block = self.block(offset)
            with self._at(offset):
                if block.previous != last_offsets.get(block.kind, -1):
                    raise ValueError(f"the block gives a wrong offset for the previous one: {block.previous:,}")
                if block.kind == DATA:
                    index.add(Entry(offset, block.size, first_key(block.data)))
                    self.blocks += 1
                    for cell in decode_cells(block.data):
                        if previous and not previous.rank < cell.rank:
                            raise ValueError(f"row {cell.row!r}: the cell {cell.qualifier!r} is out of order")
                        self.rows += not previous or previous.row != cell.row
                        self.cells += 1
                        yield cell
                        previous = cell
                else:
                    self._index_bytes += len(block.data)
                    if block.kind == LEAF_INDEX:
                        index.end_leaf(Entry(offset, block.size, b""), block.data)
            self._unpacked += HEADER_BYTES + len(block.data)
            last_offsets[block.kind] = offset
            offset += block.size
        with self._at(self.trailer[Field.ROOT_INDEX_OFFSET]):
            index.end(self._root)
        with self._at(self.size):
            if offset != stop or last_offsets.get(DATA) != self.trailer[Field.LAST_DATA_OFFSET]:
                raise ValueError("data blocks are missing")
            counts = {Field.CELLS: self.cells, Field.SIZE: self._unpacked, Field.INDEX_SIZE: self._index_bytes}
            for field, count in counts.items():
                if count != self.trailer[field]:
                    raise ValueError(
                        f"{field.name.lower()}: {count:,} in the file, but {self.trailer[field]:,} in its trailer"
                    )
            if previous and decode_key(self.info.get(LAST_KEY, b"")) != previous[:4]:
                raise ValueError("the last cell differs from the one in the file info")

    def _inner_entries(self, entry: Entry) -> list[Entry]:
        """Return the entries of an inner index block."""
        block = self.block(entry.offset, INNER_INDEX)
        with self._at(entry.offset):
            entries = decode_index(block.data)
            if block.size != entry.size or not entries or entries[0].key != entry.key:
                raise ValueError("the index block does not match its entry in the level above")
            return entries

    def block(self, offset: int, kind: bytes | None = None) -> Block:
        """Read the block at an offset; VerificationError if there is none, or it is of another kind."""
        with self._at(offset):
            self._file.seek(offset)
            header = self._file.read(HEADER_BYTES)
            if kind and not header.startswith(kind):
                raise ValueError(f"there should be a block of kind {kind.decode()} here")
            body_size = block_size(header) - HEADER_BYTES
            if not 0 <= body_size <= self.size:
                raise ValueError(f"the header of the block says that {body_size:,} bytes follow it")
            return decode_block(header + self._file.read(body_size), self.codec)

    @contextmanager
    def _at(self, offset: int) -> Iterator[None]:
        """Turn errors of the formats into VerificationErrors that say where they are."""
        try:
            yield
        except (ValueError, IndexError, KeyError, OverflowError, struct.error, zlib.error) as error:
            raise VerificationError(f"{self._name}: at byte {offset:,}: {error}") from error


class _Index:
    """Compares the lowest levels of the index with the data blocks, as these are read.

    Args:
        entries: the entries of the leaves, or of the data blocks if there are no leaves.
        has_leaves: whether the index has leaves.
    """

    def __init__(self, entries: list[Entry], has_leaves: bool) -> None:
        self._entries = entries
        self._has_leaves = has_leaves
        self._blocks: list[Entry] = []  # data blocks since the last leaf
        self._counts: list[int] = []  # number of data blocks of each leaf

    def add(self, block: Entry) -> None:
        """Add a data block that was read."""
        self._blocks.append(block)

    def end_leaf(self, leaf: Entry, data: bytes) -> None:
        """Compare a leaf with the data blocks since the previous leaf; ValueError if they differ."""
        number = len(self._counts)
        if not self._blocks or decode_index(data) != self._blocks:
            raise ValueError("the index block does not match the data blocks before it")
        if self._entries[number : number + 1] != [leaf._replace(key=self._blocks[0].key)]:
            raise ValueError("the index block does not match its entry in the level above")
        self._counts.append(len(self._blocks))
        self._blocks = []

    def end(self, root: bytes) -> None:
        """Raise ValueError if blocks are missing, or the root index has a wrong middle key."""
        if not self._has_leaves:
            if self._blocks != self._entries or len(root) != len(encode_root(self._entries)):
                raise ValueError("the root index does not match the data blocks")
        elif self._blocks or len(self._counts) != len(self._entries):
            raise ValueError("data blocks are missing, or are not in the index")
        elif not root.endswith(encode_middle(self._entries, self._counts)):
            raise ValueError("the root index has a wrong middle key")
