"""What a reducer writes as well as its lines: its region's HFile, and the comparison with the served release.

FOLDER/p/part-00000, FOLDER/part-00000.json     see `predictions.formats.hfile.region_file`
FOLDER/part-00000.comparison.json               see `predictions.task.current`
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from predictions.formats import unreadable
from predictions.formats.hfile.region_file import RegionFile
from predictions.formats.prediction_line import COLUMNS
from predictions.task import environment
from predictions.task.current import CurrentRegion
from predictions.task.webhdfs import upload


def write_region(lines: Iterable[bytes], output: BinaryIO, folder: str, served: CurrentRegion | None) -> None:
    """Write a region's lines and files; in a job, upload the files into the task's output folder on HDFS.

    Args:
        lines: blocks of the region's prediction lines.
        output: where to write the lines.
        folder: where to write the files.
        served: the served release's lines of the region, to compare with; None to compare nothing.
    """

    def written(hfile: RegionFile) -> Iterator[bytes]:
        for block in lines:
            output.write(block)
            records = unreadable.records(block)
            hfile.write(records)
            yield records

    with RegionFile(folder, environment.partition(), served.columns if served else COLUMNS) as hfile:
        if served:
            served.compare(written(hfile), folder)
        else:
            deque(written(hfile), maxlen=0)
    upload(folder, hfile)
