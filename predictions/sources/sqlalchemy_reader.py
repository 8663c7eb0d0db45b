"""Read single records of a database with SQLAlchemy, for lookups."""

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
from predictions.sources.reader import Columns, Rows
from predictions.sources.sqlalchemy import MYSQL, Source, SqlalchemyDatabase, error_number, is_timeout, sqlstate
from predictions.sources.sqlalchemy_values import field, plain

MAX_IDS = 1_000  # of one statement: Oracle accepts no more
_CHARACTER_SET_ERRORS = (1267, 1270, 1271)  # MySQL: the column's character set cannot hold the ID

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,65}(\.[0-9]{1,65})?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SqlalchemySession:
    """A session that remembers the source's columns (see `predictions.sources.reader.Session`)."""

    def __init__(self, database: SqlalchemyDatabase, settings: DatabaseSettings, _deadline: float) -> None:
        self._database = database
        self._connection = database.connect(settings.timeout)  # limits each statement; deadlines are not used
        self._id = settings.id
        try:
            self._source = Source.find(database, settings, self._connection)
            self._source.column(database, self._id)
            self._parse_id = self._id_parser()
        except BaseException:
            self.close()
            raise
        # A parameter without a type is sent as it is. With a type, SQLAlchemy would cast it, and the database could not
        # use an index.
        is_wanted = self._source.relation.c[self._id].in_(bindparam("ids", type_=sql.NullType(), expanding=True))
        self._statement = select(text("*")).select_from(self._source.relation).where(is_wanted)

    def _id_parser(self) -> Callable[[str], list[Any]]:
        """Return a function that returns the values that the ID column may hold for the text of a record ID."""
        type_ = self._source.types.get(self._id, sql.NullType())
        if isinstance(type_, sql.Float):
            return _parser(_float)
        if isinstance(type_, sql.Integer):
            return _parser(_unsigned if getattr(type_, "unsigned", False) else _signed)
        with suppress(NotImplementedError):
            if not isinstance(type_, sql.NullType):
                return _parser(_PARSERS.get(type_.python_type, str))
        # The source is a query, or SQLAlchemy does not know the type: go by the type that the driver gives.
        no_rows = self._connection.execute(select(self._source.relation.c[self._id]).limit(0))
        dbapi = self._connection.dialect.loaded_dbapi
        driver_type = no_rows.cursor.description[0][1] if no_rows.cursor and no_rows.cursor.description else None
        if driver_type == dbapi.NUMBER:
            return _parser(_number)
        # MySQL's drivers may give text for binary, and binary for text.
        if driver_type == dbapi.BINARY or self._connection.dialect.name in MYSQL:
            return _parser(str, _bytes)
        return _parser(str)

    def find(self, record_ids: Sequence[str], _deadline: float) -> list[Rows]:
        """See `predictions.sources.reader.Session`."""
        values = [value for record_id in record_ids for value in self._parse_id(record_id)]
        starts = range(0, len(values), MAX_IDS)
        return [rows for start in starts for rows in self._rows(values[start : start + MAX_IDS])]

    def is_over(self, error: Exception) -> bool:
        """Return whether the server may have been restarted, or the table replaced."""
        return isinstance(error, exc.DBAPIError) and not is_timeout(error)

    def close(self) -> None:
        """See `predictions.sources.reader.Session`."""
        self._connection.engine.dispose()

    def _missing(self, name: str, columns: Iterable[str]) -> InputError:
        return no_column(name, self._source.display_name, self._database.name, columns)

    def _rows(self, values: list[Any]) -> list[Rows]:
        """Return the rows whose ID the database considers equal to one of the values."""
        try:
            result = self._connection.execute(self._statement, {"ids": values})
            indexes = {name: index for index, name in enumerate(result.keys())}
            return [Rows(Columns(indexes, _fields, _plain, self._missing), result.all())]
        except exc.DBAPIError as error:
            is_data_error = isinstance(error, exc.DataError) or sqlstate(error)[:2] == "22"
            if not is_data_error and error_number(error) not in _CHARACTER_SET_ERRORS:
                raise
        # At least one value does not fit the column's type: halve them to find the others.
        if len(values) < 2:
            return []
        half = len(values) // 2
        return [*self._rows(values[:half]), *self._rows(values[half:])]


def _fields(name: str, values: Sequence[Any]) -> list[bytes]:
    return [field(name, value) for value in values]


def _plain(name: str, values: Sequence[Any]) -> list[Any]:
    return [plain(name, value) for value in values]


def _parser(*parsers: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a function that returns the values of all parsers that accept a text."""

    def parse_all(record_id: str) -> list[Any]:
        values = []
        for parse in parsers:
            with suppress(ValueError):
                values.append(parse(record_id))
        return values

    return parse_all


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
        return record_id  # the database converts the text
    raise ValueError(record_id)


_PARSERS: dict[type, Callable[[str], Any]] = {
    Decimal: _decimal,
    bytes: _bytes,
    date: date.fromisoformat,
    datetime: datetime.fromisoformat,
    UUID: _uuid,
}
