"""Load: a release's prediction lines into a table of its own, checked by what is read back."""

import subprocess
import time
from collections.abc import Callable, Iterator

import happybase

from hadoop.streaming import find_command
from loader.connection import connect
from loader.puts import count, put
from loader.regions import split_points
from predictions.errors import InternalError, VerificationError
from predictions.pointer import LOADED, Releases, release_table
from predictions.records import split_lines
from predictions.rowkey import PREFIX_DIGITS
from predictions.schema import FAMILY
from predictions.settings import Settings
from predictions.storage import ReleaseFolder


def load(
    settings: Settings, folder: ReleaseFolder, progress: Callable[[int, int], None], report: Callable[[str], None]
) -> int:
    """Load a release, unless that has been done; nothing that is served changes.

    Args:
        settings: where HBase is and how many regions the table gets.
        folder: a release that was scored.
        progress: called with the rows written so far and their total.
        report: called with a line of text where something is worth knowing.

    Returns:
        The number of rows in the release's table.

    Raises:
        ServiceError: HBase cannot be reached.
        VerificationError: the table does not hold what was written.
    """
    folder.require("scored", "score")
    manifest = folder.manifest()
    started = time.monotonic()
    scored = folder.counts(manifest)
    expected = scored["rows"]
    table = release_table(settings.name, folder.release)
    with connect(settings.hbase.thrift) as connection:
        releases = Releases(connection, settings.name)
        releases.make_table()
        if releases.state(folder.release) == LOADED:
            report(f"release {folder.release} is loaded already")
            return expected
        releases.claim(folder.release)
        _make_release_table(connection, table, settings, report)
        written = 0
        for path in folder.files("scored"):
            for rows in _put_part(connection, table, folder, path):
                written += rows
                progress(written, expected)
        _verify(connection, table, expected, scored["id_digest"])
        manifest["loaded"] = {"rows": expected, "seconds": round(time.monotonic() - started, 3)}
        folder.write_manifest(manifest)
        releases.finish(folder.release, manifest)
    return expected


def _put_part(connection: happybase.Connection, table: str, folder: ReleaseFolder, path: str) -> Iterator[int]:
    for block in folder.blocks(path):
        yield from put(connection, table, split_lines(block))


def _make_release_table(
    connection: happybase.Connection, table: str, settings: Settings, report: Callable[[str], None]
) -> None:
    if table.encode() in connection.tables():
        return
    regions, hbase = settings.hbase.regions, find_command("hbase", settings.hadoop.bin)
    if regions == 1 or not hbase:
        if regions > 1:
            report("hbase: no such command; the table gets one region, since only `hbase` can make it with several")
        connection.create_table(table, {FAMILY.decode(): {}})
        return
    # Thrift 1 cannot pass split points. These are the ones of loader/regions.py, which is checked below.
    splitter = [hbase, "org.apache.hadoop.hbase.util.RegionSplitter", "-c", str(regions), "-f", FAMILY.decode()]
    rows = ["--firstrow", "0" * PREFIX_DIGITS, "--lastrow", "f" * PREFIX_DIGITS]
    done = subprocess.run(
        [*splitter, *rows, table, "HexStringSplit"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    made = [region["start_key"] for region in connection.table(table).regions()]
    if made[1:] != split_points(regions):
        if table.encode() in connection.tables():
            connection.delete_table(table, disable=True)  # so that loading again makes it anew
        said = [line for line in done.stderr.splitlines() if "ERROR" in line or "Exception" in line]
        raise InternalError(f"table {table} was not made with {regions} regions: {(said or ['no message'])[-1]}")


def _verify(connection: happybase.Connection, table: str, expected: int, digest: str) -> None:
    rows, found = count(connection, table)
    if rows != expected:
        raise VerificationError(f"table {table} holds {rows:,} rows, {expected:,} were written: load it again")
    if f"{found:016x}" != digest:
        raise VerificationError(f"table {table} holds {rows:,} rows, but not those of the records that were scored")
