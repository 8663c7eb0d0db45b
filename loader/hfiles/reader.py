"""Reads an HFile of `loader.hfiles.writer` from its first byte to its last, and trusts none of them."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from loader.hfiles.blocks import (
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
from loader.hfiles.cells import Cell, decode_cells, decode_key, first_key
from loader.hfiles.index import Entry, decode_index, decode_root, encode_middle
from loader.hfiles.trailer import TRAILER_BYTES, Field, decode_info, decode_trailer
from loader.hfiles.writer import LAST_KEY
from predictions.errors import VerificationError


class HFileReader:
    """An HFile, its trailer and index read and found to be right.

    Args:
        file: to read from; it must be able to seek.
        name: of the file, for messages.

    Raises:
        VerificationError: it is not as it was written; the message says where.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.size = file.seek(0, os.SEEK_END)
        self.rows = self.cells = 0  # that were read so far
        with self._at(trailer := max(0, self.size - TRAILER_BYTES)):
            file.seek(trailer)
            self.trailer = decode_trailer(file.read())
            self.codec = Codec(self.trailer[Field.CODEC])
        root_offset = self.trailer[Field.ROOT_INDEX_OFFSET]
        root = self.block(root_offset, ROOT_INDEX)
        meta = self.block(root_offset + root.size, ROOT_INDEX)
        info = self.block(root_offset + root.size + meta.size, FILE_INFO)
        with self._at(self.trailer[Field.FILE_INFO_OFFSET]):
            self.info = decode_info(info.data)
            if self.trailer[Field.FILE_INFO_OFFSET] + info.size != trailer:
                raise ValueError("trailer and file info are not at the end, one after the other")
        with self._at(root_offset):
            self._entries = self._index(root.data)
        self.blocks = len(self._entries)  # of data

    def read(self) -> Iterator[Cell]:
        """Yield every cell in order.

        Raises:
            VerificationError: a block, the order or a count is not as it was written.
        """
        offset, stop = self.trailer[Field.FIRST_DATA_OFFSET], self.trailer[Field.ROOT_INDEX_OFFSET]
        last: dict[bytes, int] = {}
        entries = iter(self._entries)
        before: Cell | None = None
        while offset < stop:
            block = self.block(offset)
            with self._at(offset):
                if block.previous != last.get(block.kind, -1):
                    raise ValueError(f"it says that the one before is at {block.previous:,}")
                if block.kind == DATA:
                    if Entry(offset, block.size, first_key(block.data)) != next(entries, None):
                        raise ValueError("the index says something else of it")
                    for cell in decode_cells(block.data):
                        if before and not before.rank < cell.rank:
                            raise ValueError(f"row {cell.row!r}, {cell.qualifier!r}: not after the cell before it")
                        self.rows += not before or before.row != cell.row
                        self.cells += 1
                        yield cell
                        before = cell
            last[block.kind] = offset
            offset += block.size
        with self._at(self.size):
            if next(entries, None) or offset != stop or last.get(DATA) != self.trailer[Field.LAST_DATA_OFFSET]:
                raise ValueError("data blocks are missing")
            if self.cells != self.trailer[Field.CELLS]:
                raise ValueError(f"{self.cells:,} cells, but it was written with {self.trailer[Field.CELLS]:,}")
            if before and decode_key(self.info.get(LAST_KEY, b"")) != before[:4]:
                raise ValueError("the last cell is not the one that it was written with")

    def _index(self, root: bytes) -> list[Entry]:
        """Return the entries of all data blocks."""
        entries = decode_root(root, self.trailer[Field.ROOT_ENTRIES])
        levels = self.trailer[Field.INDEX_LEVELS]
        for level in range(levels, 1, -1):
            kind = INNER_INDEX if level > 2 else LEAF_INDEX
            below = [(entry, self.block(entry.offset, kind)) for entry in entries]
            if level == 2:
                self._check_middle(root, entries, [len(decode_index(block.data)) for _entry, block in below])
            entries = [lower for entry, block in below for lower in self._lower(entry, block)]
        return entries

    def _lower(self, entry: Entry, block: Block) -> list[Entry]:
        with self._at(entry.offset):
            lower = decode_index(block.data)
            if block.size != entry.size or not lower or lower[0].key != entry.key:
                raise ValueError("the index above says something else of it")
            return lower

    def _check_middle(self, root: bytes, leaves: Sequence[Entry], blocks: Sequence[int]) -> None:
        if not root.endswith(encode_middle(leaves, blocks)):
            raise ValueError("it gives another middle key")

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
        except (ValueError, IndexError, KeyError, struct.error, zlib.error) as error:
            raise VerificationError(f"{self._name}: at byte {offset:,}: {error}") from error
