"""Read a range of a release's table: count its rows, or compare every cell with the prediction lines."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.prediction_line import FAMILY, cells, parse_line
from predictions.formats.record_line import split_lines
from predictions.formats.row_key import record_id, record_ids
from predictions.hbase.connection import Connection
from predictions.hbase.rows import Cell, Row

EXAMPLES = 20
# A line without a row; a row without a line; a row whose cells are not those of its line.
KINDS = ("missing", "extra", "different")
KEY_ROWS = 5_000  # rows of a page, where only row keys are read


@dataclass
class TableRange:
    """What was read in a range.

    Args:
        rows: rows in the table.
        id_digest: ID digest of these rows.
        cells: cells that were compared.
        mismatches: how many rows are wrong, by kind (`KINDS`).
        examples: the first wrong rows of each kind, as text.
    """

    rows: int = 0
    id_digest: IdDigest = NO_IDS
    cells: int = 0
    mismatches: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def note(self, kind: str, key: bytes, difference: str = "") -> None:
        """Count a wrong row; the first ones of each kind are kept as examples."""
        self.mismatches[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(f"{record_id(key).decode(errors='replace')}{difference}")


def count_range(
    connection: Connection, table: str, bounds: tuple[bytes, bytes], report: Callable[[int], None]
) -> TableRange:
    """Count the rows of a range and digest their record IDs; HBase sends row keys only.

    Args:
        connection: this process's connection.
        table: the release's table.
        bounds: the range's first row key and the one that it stops before.
        report: called after each page with the rows so far.
    """
    table_range = TableRange()
    for keys in connection.keys(table, *bounds, [FAMILY], KEY_ROWS):
        _count(table_range, keys)
        report(table_range.rows)
    return table_range


def compare_range(
    connection: Connection,
    table: str,
    bounds: tuple[bytes, bytes],
    blocks: Iterable[bytes],
    columns: Sequence[str],
    page_rows: int,
    report: Callable[[int], None],
) -> TableRange:
    """Compare every cell of a range, timestamp included, with the prediction lines; both are read once, in order.

    Args:
        connection: this process's connection.
        table: the release's table.
        bounds: the range's first row key and the one that it stops before.
        blocks: the range's prediction lines.
        columns: the columns of these lines.
        page_rows: rows of one request.
        report: called after each page with the rows so far.
    """
    table_range = TableRange()
    lines = (parse_line(line) for block in blocks for line in split_lines(block))
    line = next(lines, None)
    for page in connection.scan(table, *bounds, page_rows=page_rows):
        _count(table_range, [row.key for row in page])
        for row in page:
            while line and line.row_key < row.key:
                table_range.note("missing", line.row_key)
                line = next(lines, None)
            if not line or line.row_key != row.key:
                table_range.note("extra", row.key)
                continue
            table_range.cells += len(row.cells)
            expected = {column: Cell(value, int(line.scored)) for column, value in cells(line, columns).items()}
            if row.cells != expected:
                table_range.note("different", row.key, f": {next(_differences(row, expected))}")
            line = next(lines, None)
        report(table_range.rows)
    while line:
        table_range.note("missing", line.row_key)
        line = next(lines, None)
    return table_range


def _count(table_range: TableRange, keys: list[bytes]) -> None:
    table_range.rows += len(keys)
    table_range.id_digest += IdDigest.of(record_ids(keys))


def _differences(row: Row, expected: dict[bytes, Cell]) -> Iterator[str]:
    for column in sorted(row.cells.keys() | expected.keys()):
        if row.cells.get(column) != expected.get(column):
            actual, of_line = (_cell_text(cell) for cell in (row.cells.get(column), expected.get(column)))
            yield f"{column.decode(errors='replace')} is {actual}, the line has {of_line}"


def _cell_text(cell: Cell | None) -> str:
    return f"{cell.value[:80]!r} at {cell.timestamp}" if cell else "no cell"
