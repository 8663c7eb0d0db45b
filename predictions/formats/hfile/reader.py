"""Reads an HFile of `predictions.formats.hfile.writer` from its first byte to its last, and trusts none of them."""

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
    """An HFile, its trailer and the upper levels of its index read and found to be right.

    Args:
        file: to read from; it must be able to seek.
        name: of the file, for messages.

    Raises:
        VerificationError: it is not as it was written; the message says where.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.size = file.seek(0, os.SEEK_END)
        self.rows = self.cells = self.blocks = 0  # of data, that were read so far
        with self._at(trailer := max(0, self.size - TRAILER_BYTES)):
            file.seek(trailer)
            self.trailer = decode_trailer(file.read())
            self.codec = Codec(self.trailer[Field.CODEC])
            if self.trailer[Field.INDEX_LEVELS] < 1 or self.trailer[Field.META_ENTRIES]:
                raise ValueError("the trailer is not one of these files")
        root_offset = self.trailer[Field.ROOT_INDEX_OFFSET]
        root = self.block(root_offset, ROOT_INDEX)
        meta = self.block(root_offset + root.size, ROOT_INDEX)
        info = self.block(root_offset + root.size + meta.size, FILE_INFO)
        with self._at(self.trailer[Field.FILE_INFO_OFFSET]):
            self.info = decode_info(info.data)
            if self.trailer[Field.FILE_INFO_OFFSET] + info.size != trailer:
                raise ValueError("trailer and file info are not at the end, one after the other")
        self._unpacked = TRAILER_BYTES + sum(HEADER_BYTES + len(block.data) for block in (root, meta, info))
        with self._at(root_offset):
            self._root = root.data
            self._lowest = decode_root(root.data, self.trailer[Field.ROOT_ENTRIES])
            self._index_bytes = len(encode_root(self._lowest))
        for _level in range(self.trailer[Field.INDEX_LEVELS], 2, -1):
            self._lowest = [lower for entry in self._lowest for lower in self._below(entry)]

    def read(self) -> Iterator[KeyValue]:
        """Yield every cell in order; only once.

        Raises:
            VerificationError: a block, the order or a count is not as it was written.
        """
        offset, stop = self.trailer[Field.FIRST_DATA_OFFSET], self.trailer[Field.ROOT_INDEX_OFFSET]
        last: dict[bytes, int] = {}
        index = _Index(self._lowest, self.trailer[Field.INDEX_LEVELS] > 1)
        before: KeyValue | None = None
        while offset < stop:
            block = self.block(offset)
            with self._at(offset):
                if block.previous != last.get(block.kind, -1):
                    raise ValueError(f"it says that the one before is at {block.previous:,}")
                if block.kind == DATA:
                    index.add(Entry(offset, block.size, first_key(block.data)))
                    self.blocks += 1
                    for cell in decode_cells(block.data):
                        if before and not before.rank < cell.rank:
                            raise ValueError(f"row {cell.row!r}, {cell.qualifier!r}: not after the cell before it")
                        self.rows += not before or before.row != cell.row
                        self.cells += 1
                        yield cell
                        before = cell
                else:
                    self._index_bytes += len(block.data)
                    if block.kind == LEAF_INDEX:
                        index.end_leaf(Entry(offset, block.size, b""), block.data)
            self._unpacked += HEADER_BYTES + len(block.data)
            last[block.kind] = offset
            offset += block.size
        with self._at(self.trailer[Field.ROOT_INDEX_OFFSET]):
            index.end(self._root)
        with self._at(self.size):
            if offset != stop or last.get(DATA) != self.trailer[Field.LAST_DATA_OFFSET]:
                raise ValueError("data blocks are missing")
            counted = {Field.CELLS: self.cells, Field.SIZE: self._unpacked, Field.INDEX_SIZE: self._index_bytes}
            for field, found in counted.items():
                if found != self.trailer[field]:
                    raise ValueError(
                        f"{field.name.lower()}: {found:,}, but it was written with {self.trailer[field]:,}"
                    )
            if before and decode_key(self.info.get(LAST_KEY, b"")) != before[:4]:
                raise ValueError("the last cell is not the one that it was written with")

    def _below(self, entry: Entry) -> list[Entry]:
        """Return what an inner block of the index has."""
        block = self.block(entry.offset, INNER_INDEX)
        with self._at(entry.offset):
            lower = decode_index(block.data)
            if block.size != entry.size or not lower or lower[0].key != entry.key:
                raise ValueError("the index above says something else of it")
            return lower

    def block(self, offset: int, kind: bytes | None = None) -> Block:
        """Read the block at an offset; VerificationError if there is none, or none of this kind."""
        with self._at(offset):
            self._file.seek(offset)
            header = self._file.read(HEADER_BYTES)
            if kind and not header.startswith(kind):
                raise ValueError(f"it is no block of kind {kind.decode()}")
            rest = block_size(header) - HEADER_BYTES
            if not 0 <= rest <= self.size:
                raise ValueError("its sizes do not fit together")
            return decode_block(header + self._file.read(rest), self.codec)

    @contextmanager
    def _at(self, offset: int) -> Iterator[None]:
        """Say of what is wrong where it is."""
        try:
            yield
        except (ValueError, IndexError, KeyError, OverflowError, struct.error, zlib.error) as error:
            raise VerificationError(f"{self._name}: at byte {offset:,}: {error}") from error


class _Index:
    """The lowest levels of the index, compared with the data blocks as they are met.

    Args:
        entries: of the leaves; of the data blocks, where there are none.
        has_leaves: whether there are.
    """

    def __init__(self, entries: list[Entry], has_leaves: bool) -> None:
        self._entries = entries
        self._has_leaves = has_leaves
        self._met: list[Entry] = []  # data blocks since the last leaf
        self._counts: list[int] = []  # data blocks of each leaf

    def add(self, block: Entry) -> None:
        """Meet a data block."""
        self._met.append(block)

    def end_leaf(self, leaf: Entry, data: bytes) -> None:
        """Meet a leaf, which is to have the data blocks since the one before it; ValueError if it has not."""
        number = len(self._counts)
        if not self._met or decode_index(data) != self._met:
            raise ValueError("the index says something else of the data blocks before it")
        if self._entries[number : number + 1] != [leaf._replace(key=self._met[0].key)]:
            raise ValueError("the index above says something else of it")
        self._counts.append(len(self._met))
        self._met = []

    def end(self, root: bytes) -> None:
        """Raise ValueError if blocks are missing, or the root's middle key is another."""
        if not self._has_leaves:
            if self._met != self._entries or len(root) != len(encode_root(self._entries)):
                raise ValueError("the index says something else of the data blocks")
        elif self._met or len(self._counts) != len(self._entries):
            raise ValueError("data blocks are missing, or have no index")
        elif not root.endswith(encode_middle(self._entries, self._counts)):
            raise ValueError("it gives another middle key")
