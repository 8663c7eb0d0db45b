"""Single records of a database by SQLAlchemy, for lookups (see `predictions.sources.base.Reader`)."""

import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, bindparam, exc, select, text
from sqlalchemy import types as sql

from predictions.formats.record_line import SEPARATOR, escape
from predictions.settings import DatabaseSettings
from predictions.sources.base import no_column
from predictions.sources.sqlalchemy import MYSQL, Source, SqlalchemyDatabase, code, is_late, state
from predictions.sources.sqlalchemy_values import field, fields, plain

MOST = 1_000  # IDs of one statement: Oracle takes no more
_NO_COMMON_TEXT = (1267, 1270, 1271)  # MySQL: the column's character set has no such text

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,65}(\.[0-9]{1,65})?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SqlalchemyReader:
    """Reads single records, each time as they are then."""

    def __init__(self, database: SqlalchemyDatabase, settings: DatabaseSettings) -> None:
        self._database = database
        self._settings = settings
        self._opened: _Opened | None = None

    def records(self, record_ids: Sequence[str]) -> dict[str, "SqlalchemyRecord"]:
        """See `predictions.sources.base.Reader`."""
        deadline = time.monotonic() + self._settings.timeout
        with self._database.errors("timeout"):
            if self._opened:
                try:
                    return self._opened.records(record_ids)
                except exc.DBAPIError as error:
                    self.close()  # the server may have been started anew, or the table be another one
                    if is_late(error) or time.monotonic() >= deadline:
                        raise
            self._opened = _Opened.of(self._database, self._settings)
            return self._opened.records(record_ids)

    def adopt(self) -> None:
        """Nothing to do: a session may go from thread to thread."""

    def close(self) -> None:
        """See `predictions.sources.base.Reader`."""
        opened, self._opened = self._opened, None
        if opened:
            opened.connection.engine.dispose()

    def forget(self) -> None:
        """Keep it for ever: a driver may tell the server when it is freed."""
        _inherited.append(self._opened)
        self._opened = None


class _Opened:
    """A session, and what it knows of the source."""

    def __init__(self, database: SqlalchemyDatabase, connection: Connection, source: Source, id_name: str) -> None:
        self._database = database
        self.connection = connection
        self._source = source
        self._id_name = id_name
        source.column(database, id_name)
        self._values = self._find_values()
        # A parameter without a type is sent as it is: with SQLAlchemy's cast to a type no index would serve it.
        wanted = source.relation.c[id_name].in_(bindparam("ids", type_=sql.NullType(), expanding=True))
        self._statement = select(text("*")).select_from(source.relation).where(wanted)

    @classmethod
    def of(cls, database: SqlalchemyDatabase, settings: DatabaseSettings) -> "_Opened":
        """Open a session."""
        connection = database.connect(settings.timeout)
        try:
            return cls(database, connection, Source.find(database, settings, connection), settings.id)
        except BaseException:
            connection.engine.dispose()
            raise

    def _find_values(self) -> Callable[[str], list[Any]]:
        """Return what gives the values of the ID's own type whose text may be this one."""
        type_ = self._source.types.get(self._id_name, sql.NullType())
        if isinstance(type_, sql.Float):
            return _values(_float)
        if isinstance(type_, sql.Integer):
            return _values(_unsigned if getattr(type_, "unsigned", False) else _signed)
        with suppress(NotImplementedError):
            if not isinstance(type_, sql.NullType):
                return _values(_PARSE.get(type_.python_type, str))
        # Of a query, or of a type that SQLAlchemy does not know: what the driver tells.
        empty = self.connection.execute(select(self._source.relation.c[self._id_name]).limit(0))
        dbapi = self.connection.dialect.loaded_dbapi
        kind = empty.cursor.description[0][1] if empty.cursor and empty.cursor.description else None
        if kind == dbapi.NUMBER:
            return _values(_number)
        if kind == dbapi.BINARY or self.connection.dialect.name in MYSQL:  # whose drivers call either the other
            return _values(str, _bytes)
        return _values(str)

    def records(self, record_ids: Sequence[str]) -> dict[str, "SqlalchemyRecord"]:
        """Return those of the records that are there."""
        wanted = {escape(encoded): each for each in record_ids if (encoded := _encoded(each)) is not None}
        values = [value for record_id in wanted.values() for value in self._values(record_id)]
        found: dict[str, SqlalchemyRecord] = {}
        for start in range(0, len(values), MOST):
            names, rows = self._rows(values[start : start + MOST])
            if rows and self._id_name not in names:  # any more
                raise no_column(self._id_name, self._source.shown, self._database.name, names)
            for row in rows:
                # What a database calls equal may be another text: 7 and 7.0, a padded or a case-blind one.
                record_id = wanted.get(field(self._id_name, row[names[self._id_name]]))
                if record_id is not None:
                    found.setdefault(record_id, SqlalchemyRecord(self._source.shown, self._database.name, names, row))
        return found

    def _rows(self, values: list[Any]) -> tuple[dict[str, int], list[Sequence[Any]]]:
        """Return the places of the columns, and the rows whose ID the database calls equal to one of the values."""
        try:
            result = self.connection.execute(self._statement, {"ids": values})
            return {name: place for place, name in enumerate(result.keys())}, list(result.all())
        except exc.DBAPIError as error:
            if not (isinstance(error, exc.DataError) or state(error)[:2] == "22" or code(error) in _NO_COMMON_TEXT):
                raise
            # One of them is no value of the column's type.
            if len(values) < 2:
                return {}, []
        half = len(values) // 2
        names, rows = self._rows(values[:half])
        more_names, more_rows = self._rows(values[half:])
        return names or more_names, rows + more_rows


_inherited: list[_Opened | None] = []


class SqlalchemyRecord(NamedTuple):
    """See `predictions.sources.base.Record`; with the row as the driver gave it, and the places of its columns."""

    source: str
    database: str
    places: dict[str, int]
    row: Sequence[Any]

    @property
    def values(self) -> dict[str, Any]:
        """See `predictions.sources.base.Record`."""
        return {name: plain(name, self.row[place]) for name, place in self.places.items()}

    def features(self, names: Sequence[str]) -> bytes:
        """See `predictions.sources.base.Record`."""
        try:
            return SEPARATOR.join(fields(names, [self.row[self.places[name]] for name in names]))
        except KeyError as error:
            raise no_column(error.args[0], self.source, self.database, self.places) from None


def _encoded(record_id: str) -> bytes | None:
    try:
        return record_id.encode()
    except UnicodeEncodeError:
        return None  # no database text


def _values(*parsers: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def values(record_id: str) -> list[Any]:
        found = []
        for parse in parsers:
            with suppress(ValueError):
                found.append(parse(record_id))
        return found

    return values


def _integer(record_id: str, low: int, high: int) -> int:
    if _INTEGER.fullmatch(record_id) and low <= int(record_id) < high:
        return int(record_id)
    raise ValueError(record_id)


def _signed(record_id: str) -> int:
    return _integer(record_id, -(1 << 63), 1 << 63)


def _unsigned(record_id: str) -> int:
    return _integer(record_id, 0, 1 << 64)


def _decimal(record_id: str) -> Decimal:
    if _DECIMAL.fullmatch(record_id):
        return Decimal(record_id)
    raise ValueError(record_id)


def _float(record_id: str) -> float:
    number = float(record_id)
    if math.isfinite(number) and repr(number) == record_id:
        return number
    raise ValueError(record_id)


def _number(record_id: str) -> int | float | Decimal:
    for parse in (_unsigned, _signed, _decimal):
        with suppress(ValueError):
            return parse(record_id)
    return _float(record_id)


def _bytes(record_id: str) -> bytes:
    if record_id.startswith("\\x"):
        return bytes.fromhex(record_id[2:])
    raise ValueError(record_id)


def _uuid(record_id: str) -> str:
    if _UUID.fullmatch(record_id):
        return record_id  # the database takes the text for one
    raise ValueError(record_id)


_PARSE: dict[type, Callable[[str], Any]] = {
    Decimal: _decimal,
    bytes: _bytes,
    date: date.fromisoformat,
    datetime: datetime.fromisoformat,
    UUID: _uuid,
}
