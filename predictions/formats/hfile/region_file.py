"""Write the HFile of a region from its prediction lines, with a file of facts about it.

    FOLDER/p/part-00000         the HFile, in a folder named after its column family; a region without rows has none
    FOLDER/part-00000.json      the facts

The numbers are those of the part files, and so of the release's regions.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from predictions.errors import InputError
from predictions.formats.document import to_file
from predictions.formats.hfile.writer import HFileWriter
from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.names import part_name
from predictions.formats.prediction_line import COLUMNS, FAMILY, columns
from predictions.formats.row_key import record_ids


@dataclass(frozen=True)
class RegionFacts:
    """The facts about a region's HFile.

    Args:
        rows: number of rows.
        id_digest: digest of their record IDs.
        cells: number of cells.
        size: size of the file in bytes.
        sha256: SHA-256 of the file, in hex.
        first: first row key.
        last: last row key.
        hdfs_checksum: HDFS's checksum of the file, `ALGORITHM:HEX`, once HDFS has returned the file as it was written;
            empty if it was not read back.
    """

    rows: int = 0
    id_digest: IdDigest = NO_IDS
    cells: int = 0
    size: int = 0
    sha256: str = ""
    first: str = ""
    last: str = ""
    hdfs_checksum: str = ""

    @property
    def bounds(self) -> tuple[bytes, bytes]:
        """Return the first and the last row key."""
        return self.first.encode(), self.last.encode()


def hfile_name(part: int) -> str:
    """Return the path of a region's HFile in the folder."""
    return f"{FAMILY.decode()}/{part_name(part)}"


def facts_name(part: int) -> str:
    """Return the name of a region's file of facts in the folder."""
    return f"{part_name(part)}.json"


class RegionFile:
    """A context manager that writes a region's HFile and its facts; after an exception, neither file exists.

    Args:
        folder: the local folder to write to; it is created if it does not exist.
        part: the number of the region.
        columns: the columns of the release.

    Raises:
        InputError: the folder cannot be written to.
    """

    def __init__(self, folder: str, part: int, columns: Sequence[str] = COLUMNS) -> None:
        self.facts = RegionFacts()
        self._columns = columns
        self.path = os.path.join(folder, hfile_name(part))
        self._facts_path = os.path.join(folder, facts_name(part))
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(self._facts_path)  # of an earlier run
            self._hfile = HFileWriter(self.path, FAMILY)
        except OSError as error:
            raise InputError(f"cannot write an HFile into {folder}: {error}") from error
        self._digest = NO_IDS

    def __enter__(self) -> Self:
        self._hfile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hfile.__exit__(kind, error, trace)
        if kind is None:
            if facts := self._hfile.facts:
                self.facts = RegionFacts(
                    rows=facts.rows,
                    id_digest=self._digest,
                    cells=facts.cells,
                    size=facts.size,
                    sha256=facts.sha256,
                    first=facts.first.decode(),
                    last=facts.last.decode(),
                )
            self._write_facts()

    def set_hdfs_checksum(self, checksum: str) -> None:
        """Add HDFS's checksum of the uploaded file to the facts, or remove it from them (an empty one)."""
        self.facts = replace(self.facts, hdfs_checksum=checksum)
        self._write_facts()

    def _write_facts(self) -> None:
        with open(f"{self._facts_path}.part", "wb") as file:
            file.write(to_file(self.facts))
        os.replace(file.name, self._facts_path)

    def write(self, block: bytes) -> None:
        """Add prediction lines, sorted by row key.

        Raises:
            InputError: the lines are not sorted, are not prediction lines, or a row key is too long.
        """
        if block:
            keys, values_by_column, times = columns(block, self._columns)
            qualifiers = {column.removeprefix(FAMILY + b":"): values for column, values in values_by_column.items()}
            self._hfile.write(keys, qualifiers, times)
            self._digest += IdDigest.of(record_ids(keys.values))
