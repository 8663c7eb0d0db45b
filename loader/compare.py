"""What stands in a range of the release's table: counted, or compared with the prediction lines cell by cell."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.prediction_line import FAMILY, cells, parse_line
from predictions.formats.record_line import split_lines
from predictions.formats.row_key import record_id
from predictions.hbase.connection import Connection, Row

EXAMPLES = 20
# A line without a row; a row without a line; a row with a cell that is not its line's.
KINDS = ("missing", "extra", "different")
KEY_ROWS = 5_000  # of a page, where only keys are read


@dataclass
class TableRange:
    """What a range holds.

    Args:
        rows: in the table.
        id_digest: of their record IDs.
        cells: that were compared.
        mismatches: how many rows are not as they should be, by their kind, one of `KINDS`.
        examples: the first rows of each kind, as texts.
    """

    rows: int = 0
    id_digest: IdDigest = NO_IDS
    cells: int = 0
    mismatches: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def note(self, kind: str, key: bytes, what: str = "") -> None:
        """Count a row that is not as it should be."""
        self.mismatches[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(f"{record_id(key).decode(errors='replace')}{what}")


def count_range(
    connection: Connection, table: str, bounds: tuple[bytes, bytes], report: Callable[[int], None]
) -> TableRange:
    """Count the rows of a range and digest their IDs; only keys are sent.

    Args:
        connection: this process's.
        table: the release's.
        bounds: the range's first row key and the one that it stops before.
        report: called now and then with the rows so far.
    """
    found = TableRange()
    for keys in connection.keys(table, *bounds, [FAMILY], KEY_ROWS):
        _count(found, keys)
        report(found.rows)
    return found


def compare_range(
    connection: Connection,
    table: str,
    bounds: tuple[bytes, bytes],
    blocks: Iterable[bytes],
    page_rows: int,
    report: Callable[[int], None],
) -> TableRange:
    """Compare every cell of a range, its timestamp too, with the prediction lines; both are read once, in order.

    Args:
        connection: this process's.
        table: the release's.
        bounds: the range's first row key and the one that it stops before.
        blocks: the range's lines.
        page_rows: rows to ask for at once.
        report: called now and then with the rows so far.
    """
    found = TableRange()
    lines = (parse_line(line) for block in blocks for line in split_lines(block))
    line = next(lines, None)
    for page in connection.scan(table, *bounds, page_rows=page_rows):
        _count(found, [row.key for row in page])
        for row in page:
            while line and line.row_key < row.key:
                found.note("missing", line.row_key)
                line = next(lines, None)
            if not line or line.row_key != row.key:
                found.note("extra", row.key)
                continue
            found.cells += len(row.cells)
            expected = {column: (value, int(line.scored)) for column, value in cells(line).items()}
            if row.cells != expected:
                found.note("different", row.key, f": {next(_differences(row, expected))}")
            line = next(lines, None)
        report(found.rows)
    while line:
        found.note("missing", line.row_key)
        line = next(lines, None)
    return found


def _count(found: TableRange, keys: list[bytes]) -> None:
    found.rows += len(keys)
    found.id_digest += IdDigest.of(map(record_id, keys))


def _differences(row: Row, expected: dict[bytes, tuple[bytes, int]]) -> Iterator[str]:
    for column in sorted(row.cells.keys() | expected.keys()):
        if row.cells.get(column) != expected.get(column):
            there, line = (_show(cell) for cell in (row.cells.get(column), expected.get(column)))
            yield f"{column.decode(errors='replace')} is {there}, the line has {line}"


def _show(cell: tuple[bytes, int] | None) -> str:
    return f"{cell[0][:80]!r} at {cell[1]}" if cell else "no cell"
