"""Single records of a database by SQLAlchemy, for lookups."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, exc, select, text
from sqlalchemy import types as sql

from predictions.errors import InputError
from predictions.settings import DatabaseSettings
from predictions.sources.base import no_column
from predictions.sources.reader import Columns, Record
from predictions.sources.sqlalchemy import MYSQL, Source, SqlalchemyDatabase, code, is_late, state
from predictions.sources.sqlalchemy_values import fields, plain

MOST = 1_000  # IDs of one statement: Oracle takes no more
_NO_COMMON_TEXT = (1267, 1270, 1271)  # MySQL: the column's character set has no such text

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,65}(\.[0-9]{1,65})?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SqlalchemySession:
    """A session, and what it knows of the source (see `predictions.sources.reader.Session`)."""

    def __init__(self, database: SqlalchemyDatabase, settings: DatabaseSettings, _deadline: float) -> None:
        self._database = database
        self._connection = database.connect(settings.timeout)  # in which each statement may take so long
        self._id = settings.id
        try:
            self._source = Source.find(database, settings, self._connection)
            self._source.column(database, self._id)
            self._values = self._find_values()
        except BaseException:
            self.close()
            raise
        # A parameter without a type is sent as it is: with SQLAlchemy's cast to a type no index would serve it.
        wanted = self._source.relation.c[self._id].in_(bindparam("ids", type_=sql.NullType(), expanding=True))
        self._statement = select(text("*")).select_from(self._source.relation).where(wanted)

    def _find_values(self) -> Callable[[str], list[Any]]:
        """Return what gives the values of the ID's own type whose text may be this one."""
        type_ = self._source.types.get(self._id, sql.NullType())
        if isinstance(type_, sql.Float):
            return _values(_float)
        if isinstance(type_, sql.Integer):
            return _values(_unsigned if getattr(type_, "unsigned", False) else _signed)
        with suppress(NotImplementedError):
            if not isinstance(type_, sql.NullType):
                return _values(_PARSE.get(type_.python_type, str))
        # Of a query, or of a type that SQLAlchemy does not know: what the driver tells.
        empty = self._connection.execute(select(self._source.relation.c[self._id]).limit(0))
        dbapi = self._connection.dialect.loaded_dbapi
        kind = empty.cursor.description[0][1] if empty.cursor and empty.cursor.description else None
        if kind == dbapi.NUMBER:
            return _values(_number)
        if kind == dbapi.BINARY or self._connection.dialect.name in MYSQL:  # whose drivers call either the other
            return _values(str, _bytes)
        return _values(str)

    def find(self, record_ids: Sequence[str], _deadline: float) -> list[Record]:
        """See `predictions.sources.reader.Session`."""
        values = [value for record_id in record_ids for value in self._values(record_id)]
        return [record for start in range(0, len(values), MOST) for record in self._rows(values[start : start + MOST])]

    def is_over(self, error: Exception) -> bool:
        """Whether the server may have been started anew, or the table be another one."""
        return isinstance(error, exc.DBAPIError) and not is_late(error)

    def close(self) -> None:
        """See `predictions.sources.reader.Session`."""
        self._connection.engine.dispose()

    def _missing(self, name: str, known: Iterable[str]) -> InputError:
        return no_column(name, self._source.shown, self._database.name, known)

    def _rows(self, values: list[Any]) -> list[Record]:
        """Return the records whose ID the database calls equal to one of the values."""
        try:
            result = self._connection.execute(self._statement, {"ids": values})
            places = {name: place for place, name in enumerate(result.keys())}
            columns = Columns(places, fields, plain, self._missing)
            return [Record(columns, row) for row in result]
        except exc.DBAPIError as error:
            if not (isinstance(error, exc.DataError) or state(error)[:2] == "22" or code(error) in _NO_COMMON_TEXT):
                raise
        # One of them is no value of the column's type.
        if len(values) < 2:
            return []
        half = len(values) // 2
        return [*self._rows(values[:half]), *self._rows(values[half:])]


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
