"""Prediction lines into a release's table, by HappyBase puts in the order of the regions."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TypeVar

import happybase

from predictions.records import id_digest
from predictions.rowkey import record_id
from predictions.schema import FAMILY, cells, parse_line

T = TypeVar("T")
BATCH_ROWS = 2_000
SCAN_ROWS = 5_000


def put(connection: happybase.Connection, table: str, lines: Iterable[bytes]) -> Iterator[int]:
    """Write prediction lines, each with its own `scored` as timestamp, so writing twice equals writing once.

    Args:
        connection: to the Thrift server.
        table: the release's table.
        lines: prediction lines, sorted by row key.

    Yields:
        The number of rows of each batch that HBase acknowledged.
    """
    target = connection.table(table)
    for batch in _chunks(map(parse_line, lines), BATCH_ROWS):
        for scored, rows in groupby(batch, lambda line: line.scored):
            puts = target.batch(timestamp=int(scored))
            for row in rows:
                puts.put(row.row_key, cells(row))
            puts.send()
        yield len(batch)


def count(connection: happybase.Connection, table: str) -> tuple[int, int]:
    """Read a table's row keys and return their number and the digest of their record IDs."""
    # The first cell's key is enough; the filters spare the network the rest.
    scan = connection.table(table).scan(
        columns=[FAMILY], filter="FirstKeyOnlyFilter() AND KeyOnlyFilter()", batch_size=SCAN_ROWS
    )
    rows = digest = 0
    for chunk in _chunks((key for key, _cells in scan), SCAN_ROWS):
        rows += len(chunk)
        digest = (digest + id_digest(map(record_id, chunk))) % (1 << 64)
    return rows, digest


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
