"""Marking: the file of marks of a whole release, region by region in processes of this machine."""

from typing import BinaryIO

from predictions.storage import ReleaseFolder
from predictions.task.marks import marks_of
from predictions.workers import Report, cores, run_tasks


def write_marks(release: ReleaseFolder, file: BinaryIO) -> None:
    """Write the marks of a release that is scored.

    Args:
        release: its prediction lines are read.
        file: the marks go there, eight bytes a record. While a region is waited for, those behind it are in memory.

    Raises:
        InputError: a part file is not there, or is damaged.
    """
    parts = [(release, release.part("scored", region)) for region in range(release.scored.parts)]
    found, written = dict[int, bytes](), 0
    for event in run_tasks(_marks, parts, cores()):
        found[event.task] = event.value
        while written in found:
            file.write(found.pop(written))
            written += 1


def _marks(part: tuple[ReleaseFolder, str], _report: Report) -> bytes:
    release, path = part
    return marks_of(release.blocks(path))
