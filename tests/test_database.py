"""The SQLite source: snapshots of all records, and reads of single records."""

import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import pytest

from predictions.errors import InputError, ServiceError
from predictions.formats.record_line import split_lines
from predictions.settings import DatabaseSettings
from predictions.sources import open_database, open_reader, sqlite_reader


@pytest.fixture
def make(tmp_path):
    """Return a function that creates a database by a script and opens it as a source."""

    def make(script, table=None, query=None, id="id", rows=(), timeout=10.0):  # noqa: A002
        path = tmp_path / "test.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executescript(script)
            for statement, values in rows:
                connection.execute(statement, values)
        return open_database(
            DatabaseSettings(url=f"sqlite:///{path}", table=table, query=query, id=id, timeout=timeout)
        )

    return make


def record_of(database, record_id, *features):
    """Return a record's values and its features, or None if there is no record with this ID."""
    with closing(open_reader(database._settings)()) as reader:
        record = reader.records([record_id]).get(record_id)
        return (record.values, record.features(features)) if record else None


def rows_of(database, *columns):
    with database.snapshot(columns) as snapshot:
        return rows_in(snapshot), snapshot.columns


def rows_in(snapshot):
    lines = [line for share in snapshot.shares() for block in share.blocks() for line in split_lines(block)]
    return [tuple(line.split(b"\t")) for line in lines]


def test_values_of_every_kind(make):
    database = make(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b REAL, c TEXT)",
        table="t",
        rows=[
            ("INSERT INTO t VALUES (1, 1, 0.1, ?)", ("tab\there\nand \\ \u2028 é\0",)),
            ("INSERT INTO t VALUES (2, ?, 9e999, CAST(x'ff' AS TEXT))", (b"\0\xff",)),
            ("INSERT INTO t VALUES (3, NULL, NULL, '')", ()),
        ],
    )
    rows, columns = rows_of(database, "id", "a", "b", "c")
    assert rows == [
        (b"1", b"1", b"0.1", "tab\\there\\nand \\\\ \u2028 é\0".encode()),
        (b"2", b"\\\\x00ff", b"inf", b"\xff"),
        (b"3", b"\\N", b"\\N", b""),
    ]
    assert [column.type for column in columns] == ["integer", "text", "real", "text"]


def test_columns_without_a_declared_type_get_the_type_of_their_values(make):
    database = make(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b NUMERIC, c DATE); INSERT INTO t VALUES (1, 1, 2.5, '2026-01-01'), (2, 7, 1, NULL)",
        table="t",
    )
    _rows, columns = rows_of(database, "id", "a", "b", "c")
    assert [column.type for column in columns] == ["integer", "integer", "real", "date"]


@pytest.mark.parametrize("declared", ["DATE", "DATETIME", "TIMESTAMP", "timestamp with time zone", "SmallDateTime"])
@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (["2026-11-22", "2026-11-22 15:45:00"], "date"),
        (["2026-11-22", None], "date"),
        (["22.11.2026"], "date"),  # the mapper decides for each record whether it is a date
        ([None], "date"),
        ([1795362300, 0], "integer"),
        ([1795362300, None], "integer"),
        ([1795362300.5, 0], "real"),
        (["2026-11-22", 1795362300], "text"),
        (["2026-11-22", 0.5], "text"),
        ([b"\x00"], "text"),
    ],
)
def test_a_column_declared_a_date_has_the_type_of_what_it_holds(make, declared, values, type_):
    database = make(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, day {declared})",
        table="t",
        rows=[("INSERT INTO t (day) VALUES (?)", (value,)) for value in values],
    )
    _rows, columns = rows_of(database, "id", "day")
    assert [column.type for column in columns] == ["integer", type_]
    assert [column.type for column in database.columns()] == ["integer", "date"]


def test_a_value_of_another_kind_in_a_later_block_counts_too(make, monkeypatch):
    monkeypatch.setattr("predictions.sources.sqlite.FETCH_ROWS", 2)
    database = make(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, day DATE); INSERT INTO t (day) VALUES ('2026-11-22'), (NULL), (NULL), (7)",
        table="t",
    )
    assert rows_of(database, "id", "day")[1][1].type == "text"


def test_a_view_and_a_query_are_sources_too(make):
    script = "CREATE TABLE t (id TEXT, n INTEGER); INSERT INTO t VALUES ('a', 1), ('b', 2); CREATE VIEW v AS SELECT * FROM t WHERE n > 1"
    make(script, table="v")
    for source in ({"table": "v"}, {"query": "SELECT id, n, n * 2 AS twice FROM t WHERE n > 1"}):
        rows, columns = rows_of(make("", **source), "id", "n", "n")
        assert rows == [(b"b", b"2", b"2")]
        assert [column.type for column in columns] == ["text", "integer", "integer"]


def test_ids_are_matched_by_their_exact_text(make):
    database = make(
        "CREATE TABLE t (id TEXT PRIMARY KEY, n INTEGER); INSERT INTO t VALUES ('007', 1), ('7', 2), (' 7', 3), ('1e3', 4), ('é', 5)",
        table="t",
    )
    for record_id, n in (("007", 1), ("7", 2), (" 7", 3), ("1e3", 4), ("é", 5)):
        record, features = record_of(database, record_id, "n")
        assert record == {"id": record_id, "n": n}
        assert features == b"%d" % n
    for record_id in ("1000", "07", "e\u0301", "7 ", "7\0", "", "' OR 1=1 --", "\udcff", "9" * 400):
        assert record_of(database, record_id, "n") is None


def test_an_integer_id_is_its_digits_only(make):
    database = make(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, n); INSERT INTO t VALUES (7, 1), ({2**63 - 1}, 2)", table="t"
    )
    assert record_of(database, "7", "n")[0]["n"] == 1
    assert record_of(database, str(2**63 - 1), "n")[0]["n"] == 2
    for record_id in ("007", "7.0", " 7", "7 ", "+7", str(2**63), "x"):
        assert record_of(database, record_id, "n") is None


def test_an_id_of_any_storage_class_is_found(make):
    database = make("CREATE TABLE t (id, n); INSERT INTO t VALUES (7, 1), ('8', 2), (0.5, 3), (x'00ff', 4)", table="t")
    rows, _columns = rows_of(database, "id", "n", "n")
    for record_id, n in [("7", 1), ("8", 2), ("0.5", 3), ("\\x00ff", 4)]:
        record, _features = record_of(database, record_id, "n")
        assert record["n"] == n
    assert record["id"] == "AP8="
    assert [row[0] for row in rows] == [b"7", b"8", b"0.5", b"\\\\x00ff"]


@pytest.mark.parametrize(
    ("script", "source", "columns", "message"),
    [
        (
            "CREATE TABLE orders (id, n, p)",
            {"table": "order"},
            "id n p",
            "no table or view 'order' in .*; did you mean 'orders'",
        ),
        (
            "CREATE TABLE t (id, amount, p)",
            {"table": "t"},
            "id amout p",
            "no column 'amout' in t of .*; did you mean 'amount'",
        ),
        (
            "CREATE TABLE t (id, n, p)",
            {"query": "SELECT nope FROM t"},
            "id n p",
            "database.query: .*no such column: nope",
        ),
        ("CREATE TABLE t (id, n, p)", {"query": "DROP TABLE t"}, "id n p", "database.query: .*must be one SELECT"),
        (
            "CREATE TABLE t (id, n, p)",
            {"query": "SELECT 1; DROP TABLE t"},
            "id n p",
            "database.query: .*must be one SELECT",
        ),
        (
            "CREATE TABLE t (id, n, p); INSERT INTO t VALUES ('a', 1, 1), ('a', 2, 1)",
            {"table": "t"},
            "id n p",
            "id is not unique .* for example a",
        ),
    ],
)
def test_bad_sources_are_named(make, script, source, columns, message):
    with pytest.raises(InputError, match=message):
        rows_of(make(script, **source), *columns.split())


def test_the_same_record_twice_is_left_to_the_reducer(make):
    database = make("CREATE TABLE t (id, n, p); INSERT INTO t VALUES ('a', 1, 1), ('a', 1, 0), ('A', 2, 2)", table="t")
    assert len(rows_of(database, "id", "n", "p")[0]) == 3


def test_names_are_quoted(make):
    database = make(
        """CREATE TABLE "odd ""table" ("an id" PRIMARY KEY, "select" INTEGER, "a""b"); INSERT INTO "odd ""table" VALUES ('x', 1, 2)""",
        table='odd "table',
        id="an id",
    )
    assert rows_of(database, "an id", "select", 'a"b')[0] == [(b"x", b"1", b"2")]


def test_a_snapshot_sees_one_moment(make, tmp_path):
    database = make(
        "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO t VALUES (1, 50), (2, 50)",
        table="t",
    )
    with database.snapshot(["id", "n", "n"]) as snapshot:
        with closing(sqlite3.connect(tmp_path / "test.db")) as writer, writer:
            writer.execute("UPDATE t SET n = n + 100")
            writer.execute("INSERT INTO t VALUES (3, 1)")
        rows = rows_in(snapshot)
    assert [row[1] for row in rows] == [b"50", b"50"]
    assert snapshot.expected == 2


def test_a_locked_database_is_unavailable(make, tmp_path):
    database = make("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)", table="t", timeout=0.1)
    with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ServiceError, match="locked"):
            database.columns()


def test_a_file_that_is_not_a_database_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_database(DatabaseSettings(url=f"sqlite:///{tmp_path}/none.db", table="t", id="id"))
    with pytest.raises(InputError, match="must be sqlite:///PATH"):
        open_database(DatabaseSettings(url="mysql://x", table="t", id="id"))
    (tmp_path / "text.db").write_text("this is no database, but long enough to be taken for one" * 20)
    with pytest.raises(InputError, match="not a database"):
        open_database(DatabaseSettings(url=f"sqlite:///{tmp_path}/text.db", table="t", id="id")).columns()


def test_a_fork_waits_for_threads_that_read(make, monkeypatch):
    """A lock of SQLite's that another thread holds would stay locked in the forked process."""
    database = make("CREATE TABLE t (id)", table="t", rows=[("INSERT INTO t VALUES (?)", (n,)) for n in range(2_000)])
    reading, may_end, events = threading.Event(), threading.Event(), []

    def monotonic():  # called by SQLite in the middle of the statement
        if not reading.is_set():
            reading.set()
            may_end.wait(10)
            events.append("read")
        return 0.0

    monkeypatch.setattr(sqlite_reader, "time", SimpleNamespace(monotonic=monotonic))
    with closing(open_reader(database._settings)()) as reader, ThreadPoolExecutor(1) as pool:
        records = pool.submit(reader.records, ["7"])
        assert reading.wait(10)
        threading.Timer(0.5, may_end.set).start()
        child = os.fork()
        if not child:
            os._exit(0)
        events.append("forked")
        assert os.waitpid(child, 0)[1] == 0
        assert records.result().keys() == {"7"}
    assert events == ["read", "forked"]
