"""Read single records of a PostgreSQL database for lookups.

COPY writes them, so that a record's fields are byte for byte the same as in the export.
"""

import base64
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from psycopg import errors, sql

from predictions.errors import InputError
from predictions.formats.record_line import NULL, SEPARATOR, split_lines, unescape
from predictions.settings import DatabaseSettings
from predictions.sources.base import no_column
from predictions.sources.postgresql import TIMEOUTS, Field, PostgresDatabase, Source, copy
from predictions.sources.reader import Columns, Rows

_DIGITS = re.compile(r"0|-?[1-9][0-9]{0,18}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class PostgresSession:
    """A session that remembers the source's columns (see `predictions.sources.reader.Session`)."""

    def __init__(self, database: PostgresDatabase, settings: DatabaseSettings, deadline: float) -> None:
        self._database = database
        self._id = settings.id
        self._session = database.connect(settings.timeout, deadline)
        try:
            self._source = Source.find(database, settings, self._session)
            self._describe()
        except BaseException:
            self._session.close()
            raise

    def _describe(self) -> None:
        self._fields = self._database.fields(self._session, self._source)
        fields_by_name = {field.name: field for field in self._fields}
        self._columns = Columns(
            {field.name: index for index, field in enumerate(self._fields)},
            lambda _name, fields: fields,
            lambda name, fields: [_value(fields_by_name[name], field) for field in fields],
            self._missing,
        )
        if self._id not in fields_by_name:
            raise self._missing(self._id, fields_by_name)
        id_type = fields_by_name[self._id].type
        self._is_possible = _POSSIBLE.get(id_type, lambda record_id: "\0" not in record_id)
        row = self._session.execute(
            "SELECT nspname, typname FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE t.oid = %s",
            [id_type],
        ).fetchone()
        assert row
        # PostgreSQL uses an index only if the values have the column's own type. The type is named as in the catalogue,
        # without its length, which would cut off a text.
        before = sql.SQL("COPY (SELECT * FROM {} WHERE {} = ANY (").format(
            self._source.relation, sql.Identifier(self._id)
        )
        after = sql.SQL("::text[]::{}[])) TO STDOUT (HEADER)").format(sql.Identifier(*row))
        self._statement = before.as_string(self._session), after.as_string(self._session)

    def _missing(self, name: str, columns: Iterable[str]) -> InputError:
        return no_column(name, self._source.display_name, self._database.name, columns)

    def find(self, record_ids: Sequence[str], deadline: float) -> list[Rows]:
        """See `predictions.sources.reader.Session`."""
        self._session.deadline = deadline
        rows = self._rows(record_ids)
        if len({*self._columns.lines(rows, [self._id])}) < len(record_ids):
            previous_fields = self._fields
            self._describe()
            if previous_fields != self._fields:  # the ID column may have a wider type now, which holds the missing IDs
                rows = self._rows(record_ids)
        return [Rows(self._columns, rows)]

    def is_over(self, error: Exception) -> bool:
        """Return whether the server may have been restarted, or the table replaced."""
        return isinstance(error, (errors.OperationalError, errors.ProgrammingError)) and not isinstance(error, TIMEOUTS)

    def close(self) -> None:
        """See `predictions.sources.reader.Session`."""
        self._session.close()

    def _rows(self, record_ids: Sequence[str]) -> list[list[bytes]]:
        return [line.split(SEPARATOR) for line in self._lines(list(filter(self._is_possible, record_ids)))]

    def _lines(self, record_ids: list[str]) -> list[bytes]:
        values = sql.Literal(record_ids).as_string(self._session)
        try:
            header, *lines = split_lines(b"".join(copy(self._session, values.join(self._statement))))
        except errors.DataError:
            # At least one ID is not a value of the column's type: halve them to find the others.
            if len(record_ids) < 2:
                return []
            half = len(record_ids) // 2
            return [*self._lines(record_ids[:half]), *self._lines(record_ids[half:])]
        if [unescape(name).decode() for name in header.split(SEPARATOR)] != [field.name for field in self._fields]:
            self._describe()  # a column was added, removed or renamed
            return self._lines(record_ids)
        return lines


def _is_integer(low: int, high: int) -> Callable[[str], bool]:
    return lambda record_id: _DIGITS.fullmatch(record_id) is not None and low <= int(record_id) <= high


# By the OID of the ID's type, whether a text can be such an ID. No other text is sent to the database, where it would
# be an error in the log.
_POSSIBLE: dict[int, Callable[[str], bool]] = {
    20: _is_integer(-(1 << 63), (1 << 63) - 1),
    21: _is_integer(-(1 << 15), (1 << 15) - 1),
    23: _is_integer(-(1 << 31), (1 << 31) - 1),
    26: _is_integer(0, (1 << 32) - 1),
    2950: lambda record_id: _UUID.fullmatch(record_id) is not None,
}


def _value(column: Field, field: bytes) -> Any:
    if field == NULL:
        return None
    text = unescape(field).decode(errors="replace")
    if column.is_boolean:
        return text == "t"
    try:
        if column.is_bytes:
            return base64.b64encode(bytes.fromhex(text.removeprefix("\\x"))).decode()
        type_ = column.column.type
        if type_ == "integer" or (type_ == "real" and text.removeprefix("-").isdecimal()):
            return int(text)
        if type_ == "real":
            number = float(text)
            return number if math.isfinite(number) else text  # JSON has no NaN and no infinity
    except ValueError:  # the column has another type now
        pass
    return text
