"""A release's table: one column family, made with its regions, so that a load starts in all of them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from predictions.errors import InternalError
from predictions.formats.prediction_line import FAMILY
from predictions.formats.row_key import PREFIX_DIGITS
from predictions.hbase.connection import Connection
from predictions.jobs.streaming import find_command
from predictions.jobs.yarn import complaints


def make_table(
    connection: Connection, table: str, points: list[str], folder: Path | None, report: Callable[[str], None]
) -> None:
    """Make a release's table.

    Args:
        connection: to HBase.
        table: its name.
        points: the split points between its regions, as of `predictions.formats.row_key`.
        folder: where the command `hbase` is, if not on the PATH.
        report: called with a line of text where there is no such command, and so only one region.

    Raises:
        InternalError: the table does not have these regions.
    """
    hbase = find_command("hbase", folder)
    if not points or not hbase:
        if points:
            report("hbase: no such command; the table gets one region, since only `hbase` can make it with several")
        connection.create_table(table, FAMILY.decode())
        return
    # Thrift 1 cannot pass split points. These are the ones of predictions/formats/row_key.py, which is checked below.
    splitter = [hbase, "org.apache.hadoop.hbase.util.RegionSplitter", "-c", str(len(points) + 1), "-f", FAMILY.decode()]
    rows = ["--firstrow", "0" * PREFIX_DIGITS, "--lastrow", "f" * PREFIX_DIGITS]
    done = subprocess.run(
        [*splitter, *rows, table, "HexStringSplit"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    made = [region.start.decode() for region in connection.regions(table)]
    if made[1:] != points:
        if table.encode() in connection.tables():
            connection.delete_table(table)  # so that loading again makes it anew
        said = complaints(done.stderr) or ["no message"]
        raise InternalError(f"table {table} was not made with {len(points) + 1} regions: {said[-1]}")
