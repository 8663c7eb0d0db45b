"""Make a release's table: one column family, and all its regions from the start, so that a load goes to all of them."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from predictions.errors import InternalError
from predictions.formats.prediction_line import FAMILY
from predictions.formats.row_key import PREFIX_DIGITS
from predictions.hbase.connection import Connection
from predictions.jobs.streaming import find_command
from predictions.jobs.yarn import complaints
from predictions.processes import uninterrupted


def make_table(
    connection: Connection, table: str, points: list[str], folder: Path | None, report: Callable[[str], None]
) -> None:
    """Make a release's table, and wait for it; see `making_table`."""
    with making_table(connection, table, points, folder, report) as finish:
        finish()


@contextmanager
def making_table(
    connection: Connection, table: str, points: list[str], folder: Path | None, report: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Make a release's table in a JVM; yield a function that waits for it. The JVM ends with the block.

    Args:
        connection: to HBase.
        table: the table's name.
        points: the split points between its regions, those of `predictions.formats.row_key`.
        folder: the folder of the command `hbase`; None: it is looked for on the PATH.
        report: called with a line of text if the command is missing, so that the table gets one region only.

    Raises:
        InternalError: raised by the function: the table was not made with these regions.
    """
    hbase = find_command("hbase", folder)
    if not points or not hbase:
        if points:
            report("hbase: no such command; the table gets one region, since only `hbase` can make several")
        connection.create_table(table, FAMILY.decode())
        yield lambda: None
        return
    # Thrift 1 cannot pass split points. RegionSplitter makes those of predictions/formats/row_key.py: checked below.
    splitter = [hbase, "org.apache.hadoop.hbase.util.RegionSplitter", "-c", str(len(points) + 1), "-f", FAMILY.decode()]
    rows = ["--firstrow", "0" * PREFIX_DIGITS, "--lastrow", "f" * PREFIX_DIGITS]
    process = None
    with tempfile.TemporaryFile() as stderr:  # a pipe could fill up before it is read

        def finish() -> None:
            assert process
            process.wait()
            starts = [region.start.decode() for region in connection.regions(table)]
            if starts[1:] != points:
                if table.encode() in connection.tables():
                    connection.delete_table(table)  # so that the next load makes it again
                stderr.seek(0)
                errors = complaints(stderr.read().decode(errors="replace")) or ["no message"]
                raise InternalError(f"table {table} could not be made with {len(points) + 1} regions: {errors[-1]}")

        try:
            with uninterrupted():
                process = subprocess.Popen(
                    [*splitter, *rows, table, "HexStringSplit"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                )
            yield finish
        finally:
            if process:
                process.kill()
                process.wait()
