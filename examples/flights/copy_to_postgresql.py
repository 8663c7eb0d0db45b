"""Copy the flights from the SQLite database `var/flights.db` into a PostgreSQL database.

PREDICTIONS_DATABASE_URL=postgresql://… python examples/flights/copy_to_postgresql.py
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

DATABASE = Path(__file__).resolve().parent.parent.parent / "var" / "flights.db"


def copy_flights(database: Path, connection: psycopg.Connection[Any]) -> int:
    """Create the table `flights`, with its primary key, fill it, and return the number of flights."""
    with closing(sqlite3.connect(database)) as source:
        names_and_types = source.execute("SELECT name, type FROM pragma_table_info('flights')").fetchall()
        columns = ", ".join(f"{name} {type_}" for name, type_ in names_and_types)
        connection.execute(f"CREATE TABLE flights ({columns}, PRIMARY KEY (flight_id))")
        with connection.cursor() as cursor:
            with cursor.copy("COPY flights FROM STDIN") as copy:
                for row in source.execute("SELECT * FROM flights ORDER BY flight_id"):
                    copy.write_row(row)
            return cursor.rowcount


if __name__ == "__main__":
    with psycopg.connect(os.environ["PREDICTIONS_DATABASE_URL"]) as connection:
        print(f"{copy_flights(DATABASE, connection):,} flights")
