"""A region's HFile, from its prediction lines, and what is known of it.

    FOLDER/p/part-00000         the HFile, in a folder called as its column family; a region without rows has none
    FOLDER/part-00000.json      its facts

The numbers are those of the part files, so of the release's regions.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from predictions.errors import InputError
from predictions.formats.document import to_file
from predictions.formats.hfile.writer import HFileWriter
from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.names import part_name
from predictions.formats.prediction_line import FAMILY, columns
from predictions.formats.row_key import record_id


@dataclass(frozen=True)
class RegionFacts:
    """What is known of a region's HFile.

    Args:
        rows: how many it has.
        id_digest: of their record IDs.
        cells: of these rows.
        size: of the file, in bytes.
        sha256: of the file, in hex.
        first: the first row key.
        last: the last one.
    """

    rows: int = 0
    id_digest: IdDigest = NO_IDS
    cells: int = 0
    size: int = 0
    sha256: str = ""
    first: str = ""
    last: str = ""

    @property
    def bounds(self) -> tuple[bytes, bytes]:
        """The first and the last row key."""
        return self.first.encode(), self.last.encode()


def hfile_name(part: int) -> str:
    """Return the name of a region's HFile below the folder."""
    return f"{FAMILY.decode()}/{part_name(part)}"


def facts_name(part: int) -> str:
    """Return the name of its facts below the folder."""
    return f"{part_name(part)}.json"


class RegionFile:
    """Writes a region's HFile and its facts, as a context; where that ends with an exception, there is neither.

    Args:
        folder: on this machine; it is made.
        part: the region's number.

    Raises:
        InputError: nothing can be written there.
    """

    def __init__(self, folder: str, part: int) -> None:
        self.facts = RegionFacts()
        self._facts_path = os.path.join(folder, facts_name(part))
        path = os.path.join(folder, hfile_name(part))
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(self._facts_path)  # of an earlier run
            self._hfile = HFileWriter(path, FAMILY)
        except OSError as error:
            raise InputError(f"no HFile can be written into {folder}: {error}") from error
        self._digest = NO_IDS

    def __enter__(self) -> Self:
        self._hfile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hfile.__exit__(kind, error, trace)
        if kind is None:
            if written := self._hfile.facts:
                self.facts = RegionFacts(
                    rows=written.rows,
                    id_digest=self._digest,
                    cells=written.cells,
                    size=written.size,
                    sha256=written.sha256,
                    first=written.first.decode(),
                    last=written.last.decode(),
                )
            with open(f"{self._facts_path}.part", "wb") as file:
                file.write(to_file(self.facts))
            os.replace(file.name, self._facts_path)

    def write(self, block: bytes) -> None:
        """Add prediction lines, in the order of their row keys.

        Raises:
            InputError: they are not, they are none, or a row key is too long.
        """
        if block:
            keys, of_rows, times = columns(block)
            qualifiers = {column.removeprefix(FAMILY + b":"): values for column, values in of_rows.items()}
            self._hfile.write(keys, qualifiers, times)
            self._digest += IdDigest.of(map(record_id, keys))
