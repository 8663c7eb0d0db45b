"""Write the file of marks of a release, region by region in processes of this machine."""

from typing import BinaryIO

from predictions.storage import ReleaseFolder
from predictions.task.marks import marks_of
from predictions.workers import Report, cores, run_tasks


def write_marks(release: ReleaseFolder, file: BinaryIO) -> None:
    """Write the marks of a scored release.

    The marks of a region stay in memory until those of the regions before it are written.

    Args:
        release: whose prediction lines are read.
        file: where to write the marks, eight bytes a record.

    Raises:
        InputError: a part file is missing or damaged.
    """
    parts = [(release, release.part("scored", region)) for region in range(release.scored.parts)]
    waiting, next_region = dict[int, bytes](), 0
    for event in run_tasks(_marks, parts, cores()):
        waiting[event.task] = event.value
        while next_region in waiting:
            file.write(waiting.pop(next_region))
            next_region += 1


def _marks(part: tuple[ReleaseFolder, str], _report: Report) -> bytes:
    release, path = part
    return marks_of(release.blocks(path))
