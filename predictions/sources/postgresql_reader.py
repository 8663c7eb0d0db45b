"""Single records of a PostgreSQL database, for lookups (see `predictions.sources.base.Reader`).

They are read by COPY, so that a record's fields are byte for byte what the export would write.
"""

import base64
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psycopg import errors, sql

from predictions.formats.record_line import NULL, SEPARATOR, escape, split_lines, unescape
from predictions.settings import DatabaseSettings
from predictions.sources.base import no_column
from predictions.sources.postgresql import TOO_LATE, Field, PostgresDatabase, Session, Source, copy

_DIGITS = re.compile(r"0|-?[1-9][0-9]{0,18}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class PostgresReader:
    """Reads single records, each time as they are then."""

    def __init__(self, database: PostgresDatabase, settings: DatabaseSettings) -> None:
        self._database = database
        self._settings = settings
        self._opened: _Opened | None = None

    def records(self, record_ids: Sequence[str]) -> dict[str, "PostgresRecord"]:
        """See `predictions.sources.base.Reader`."""
        deadline = time.monotonic() + self._settings.timeout
        with self._database.errors(self._settings.timeout, "timeout"):
            if self._opened:
                try:
                    return self._opened.records(record_ids, deadline)
                except (errors.OperationalError, errors.ProgrammingError) as error:
                    if isinstance(error, TOO_LATE) or time.monotonic() > deadline:
                        raise
                    self.close()  # the server may have been started anew, or the table be another one
            self._opened = _Opened.of(self._database, self._settings, deadline)
            return self._opened.records(record_ids, deadline)

    def adopt(self) -> None:
        """Nothing to do: a session may go from thread to thread."""

    def close(self) -> None:
        """See `predictions.sources.base.Reader`."""
        opened, self._opened = self._opened, None
        if opened:
            opened.session.close()

    def forget(self) -> None:
        """See `predictions.sources.base.Reader`; psycopg does not end a session of another process's."""
        self._opened = None


class _Opened:
    """A session, and what it knows of the source."""

    def __init__(self, database: PostgresDatabase, session: Session, source: Source, id_name: str) -> None:
        self._database = database
        self.session = session
        self._source = source
        self._id_name = id_name
        self._describe()

    @classmethod
    def of(cls, database: PostgresDatabase, settings: DatabaseSettings, deadline: float) -> "_Opened":
        """Open a session, before the deadline."""
        session = database.connect(settings.timeout, deadline)
        try:
            return cls(database, session, Source.find(database, settings, session), settings.id)
        except BaseException:
            session.close()
            raise

    def _describe(self) -> None:
        self._fields = self._database.fields(self.session, self._source)
        self._places = {field.name: place for place, field in enumerate(self._fields)}
        if self._id_name not in self._places:
            raise no_column(self._id_name, self._source.shown, self._database.name, self._places)
        self._id_place = self._places[self._id_name]
        id_field = self._fields[self._id_place]
        self._is_possible = _POSSIBLE.get(id_field.type, _is_text)
        row = self.session.execute(
            "SELECT nspname, typname FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE t.oid = %s",
            [id_field.type],
        ).fetchone()
        assert row
        # An index serves the comparison only where it is one of the column's own type; by its name in the catalogue,
        # which has no length that would cut a text off.
        before = sql.SQL("COPY (SELECT * FROM {} WHERE {} = ANY (").format(
            self._source.relation, sql.Identifier(self._id_name)
        )
        after = sql.SQL("::text[]::{}[])) TO STDOUT (HEADER)").format(sql.Identifier(*row))
        self._statement = before.as_string(self.session), after.as_string(self.session)

    def records(self, record_ids: Sequence[str], deadline: float) -> dict[str, "PostgresRecord"]:
        """Return those of the records that are there."""
        self.session.deadline = deadline
        found = self._find(record_ids)
        if len(found) < len(set(record_ids)):
            known = self._fields
            self._describe()
            if known != self._fields:  # the ID may have a wider type by now, which has room for it
                return self._find(record_ids)
        return found

    def _find(self, record_ids: Sequence[str]) -> dict[str, "PostgresRecord"]:
        wanted = {escape(record_id.encode()): record_id for record_id in record_ids if _is_text(record_id)}
        found: dict[str, PostgresRecord] = {}
        for line in self._lines([record_id for record_id in wanted.values() if self._is_possible(record_id)]):
            fields = line.split(SEPARATOR)
            # What PostgreSQL calls equal may be another text: 7 and 7.0, a padded or a case-blind one.
            record_id = wanted.get(fields[self._id_place])
            if record_id is not None:
                found.setdefault(record_id, PostgresRecord(self._source.shown, self._fields, self._places, fields))
        return found

    def _lines(self, record_ids: list[str]) -> list[bytes]:
        values = sql.Literal(record_ids).as_string(self.session)
        try:
            header, *lines = split_lines(b"".join(copy(self.session, values.join(self._statement))))
        except errors.DataError:
            # One of them is no value of the column's type.
            if len(record_ids) < 2:
                return []
            half = len(record_ids) // 2
            return [*self._lines(record_ids[:half]), *self._lines(record_ids[half:])]
        if [unescape(name).decode() for name in header.split(SEPARATOR)] != [field.name for field in self._fields]:
            self._describe()  # a column came, went or was renamed
            return self._lines(record_ids)
        return lines


def _is_text(record_id: str) -> bool:
    """Whether an ID can be a text of PostgreSQL's."""
    try:
        return b"\0" not in record_id.encode()
    except UnicodeEncodeError:
        return False


def _is_integer(low: int, high: int) -> Callable[[str], bool]:
    return lambda record_id: _DIGITS.fullmatch(record_id) is not None and low <= int(record_id) <= high


# Whether a text can be that of an ID of a type (by its OID): others are not asked for, and are no errors in its log.
_POSSIBLE: dict[int, Callable[[str], bool]] = {
    20: _is_integer(-(1 << 63), (1 << 63) - 1),
    21: _is_integer(-(1 << 15), (1 << 15) - 1),
    23: _is_integer(-(1 << 31), (1 << 31) - 1),
    26: _is_integer(0, (1 << 32) - 1),
    2950: lambda record_id: _UUID.fullmatch(record_id) is not None,
}


class PostgresRecord(NamedTuple):
    """See `predictions.sources.base.Record`; with the fields as they stand in its line, and its columns' places."""

    source: str
    columns: list[Field]
    places: dict[str, int]
    fields: list[bytes]

    @property
    def values(self) -> dict[str, Any]:
        """See `predictions.sources.base.Record`."""
        return {column.name: _value(column, field) for column, field in zip(self.columns, self.fields, strict=True)}

    def features(self, names: Sequence[str]) -> bytes:
        """See `predictions.sources.base.Record`."""
        try:
            return SEPARATOR.join([self.fields[self.places[name]] for name in names])
        except KeyError as error:
            raise no_column(error.args[0], self.source, "the database", self.places) from None


def _value(column: Field, field: bytes) -> Any:
    if field == NULL:
        return None
    text = unescape(field).decode(errors="replace")
    if column.is_boolean:
        return text == "t"
    try:
        if column.is_bytes:
            return base64.b64encode(bytes.fromhex(text.removeprefix("\\x"))).decode()
        kind = column.column.type
        if kind == "integer" or (kind == "real" and text.removeprefix("-").isdecimal()):
            return int(text)
        if kind == "real":
            number = float(text)
            return number if math.isfinite(number) else text  # JSON has no such number
    except ValueError:  # the column has another type by now
        pass
    return text
