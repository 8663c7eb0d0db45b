"""What a reducer writes beside its lines: the HFile of its region, and how the lines compare with the served release's.

FOLDER/p/part-00000, FOLDER/part-00000.json     as `predictions.formats.hfile.region_file`
FOLDER/part-00000.comparison.json               as `predictions.task.current`
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from predictions.formats import unreadable
from predictions.formats.hfile.region_file import RegionFile
from predictions.task import environment
from predictions.task.current import CurrentRegion
from predictions.task.webhdfs import upload


def write_region(lines: Iterable[bytes], output: BinaryIO, folder: str, current: CurrentRegion | None) -> None:
    """Write a region's lines and its files; those of a job's task go into its output folder on HDFS.

    Args:
        lines: blocks of the region's prediction lines.
        output: the lines go there.
        folder: and the files here.
        current: the served release's lines of the region.
    """

    def written(hfile: RegionFile) -> Iterator[bytes]:
        for block in lines:
            output.write(block)
            records = unreadable.records(block)
            hfile.write(records)
            yield records

    with RegionFile(folder, environment.partition()) as hfile:
        if current:
            current.compare(written(hfile), folder)
        else:
            deque(written(hfile), maxlen=0)
    upload(folder)
