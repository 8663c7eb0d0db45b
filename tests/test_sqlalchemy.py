"""Records of a real MariaDB by SQLAlchemy: snapshot, lines, single records; and of PostgreSQL where it differs."""

import base64
import gc
import json
import os
import re
import socket
import threading
import time
from contextlib import closing, contextmanager
from urllib.parse import quote

import psycopg
import pytest
from conftest import manifest_of
from sqlalchemy import Engine, event

from predictions.errors import InputError, PredictionsError, ServiceError, SnapshotLostError
from predictions.formats.record_line import split_lines, unescape
from predictions.settings import DatabaseSettings, ModelSettings, Settings
from predictions.sources import open_database, open_reader
from predictions.sources import reader as reader_module
from predictions.sources import sqlalchemy as module
from predictions.sources.sqlalchemy_values import field, plain
from predictions.stages.export import export
from predictions.storage import Storage

ACCOUNTS = 60_000
NASTY = [
    "",
    " ",
    "\\",
    "\\N",
    "a\tb",
    "a\nb",
    "a\r\nb",
    "\0",
    "\b\f\v\x01\x7f",
    "'\"`%:x",
    "é\u2028\u202e😀",
    "x" * 60_000,
]
ZONES = ["Pacific/Chatham", "UTC"]


@pytest.fixture(scope="module", autouse=True)
def no_authorities():
    """Use no certificate authorities: PyMySQL reads the system's for 50 ms per connection, and nothing is encrypted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", os.devnull)
        yield


@pytest.fixture(scope="module")
def admin(mariadb):
    with closing(mariadb.connect()) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def url(mariadb):
    return f"mysql+pymysql://predictions:{quote(mariadb.password)}@127.0.0.1:{mariadb.port}/test"


@pytest.fixture
def make(admin, url):
    """Run statements in the database, which starts empty, and open a source of it."""

    def make(*script, table=None, query=None, id="id", **values):  # noqa: A002
        for statement in script:
            admin.execute(statement)
        settings = {"url": url, "table": table, "query": query, "id": id, "timeout": 30.0, **values}
        return open_database(DatabaseSettings(**settings))

    admin.execute("CREATE OR REPLACE DATABASE test CHARACTER SET utf8mb4")
    admin.execute("USE test")
    return make


@pytest.fixture
def on_postgresql(postgresql):
    """Run statements on PostgreSQL, and open a source of it by SQLAlchemy."""
    with psycopg.connect(postgresql.url, autocommit=True) as connection:

        def make(*script, table="t", query=None, id="id"):  # noqa: A002
            for statement in script:
                connection.execute(statement)
            url = postgresql.url.replace("postgresql://", "postgresql+psycopg://")
            table = None if query else table
            return open_database(DatabaseSettings(url=url, table=table, query=query, id=id, timeout=30.0))

        yield make
        connection.execute("DROP TABLE IF EXISTS t")


def rows_of(database, *columns):
    """Return the fields of all records, and the columns' types."""
    with database.snapshot(columns) as snapshot:
        return rows_in(snapshot), [column.type for column in snapshot.columns]


def rows_in(snapshot):
    lines = [line for share in snapshot.shares() for block in share.blocks() for line in split_lines(block)]
    return [tuple(line.split(b"\t")) for line in lines]


def look_up(database, *record_ids):
    with closing(open_reader(database._settings)()) as reader:
        return reader.records(record_ids)


def message(kind, action):
    """Return the text of the error that an action raises; it must be one line, without the password."""
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert "secret" not in text
    return text


# --- lines -----------------------------------------------------------------------------------------------------------

TYPES = [
    ("INT", "integer", [("-7", "-7", -7)]),
    ("BIGINT UNSIGNED", "integer", [("18446744073709551615", str(2**64 - 1), 2**64 - 1)]),
    ("YEAR", "integer", [("2026", "2026", 2026)]),
    ("BOOL", "integer", [("TRUE", "1", 1)]),
    ("DECIMAL(38,0)", "real", [("1" + "0" * 37, "1" + "0" * 37, 10**37)]),
    ("DECIMAL(10,2)", "real", [("7", "7.00", 7.0), ("-0.5", "-0.50", -0.5)]),
    ("DECIMAL(38,30)", "real", [("1e-30", "0." + "0" * 29 + "1", 1e-30)]),
    ("DOUBLE", "real", [("0.1e0 + 0.2e0", "0.30000000000000004", 0.1 + 0.2), ("1e300", "1e+300", 1e300)]),
    ("FLOAT", "real", [("0.1", "0.1", 0.1)]),
    ("BIT(9)", "text", [("b'101'", "\\\\x0005", "AAU=")]),
    ("DATE", "date", [("'2026-11-22'", "2026-11-22", "2026-11-22")]),
    ("DATETIME", "date", [("'2026-11-22 15:45:00'", "2026-11-22 15:45:00", "2026-11-22 15:45:00")]),
    ("DATETIME(6)", "date", [("'2026-11-22 15:45:00.5'", "2026-11-22 15:45:00.500000", "2026-11-22 15:45:00.500000")]),
    ("TIMESTAMP NULL", "date", [("FROM_UNIXTIME(1795362300)", "2026-11-22 15:45:00", "2026-11-22 15:45:00")]),
    (
        "TIME(6)",
        "text",
        [("'-838:59:58.5'", "-838:59:58.500000", "-838:59:58.500000"), ("'1:2:3'", "01:02:03", "01:02:03")],
    ),
    ("CHAR(5)", "text", [("'a'", "a", "a")]),
    ("ENUM('a', 'b')", "text", [("'b'", "b", "b")]),
    ("SET('a', 'b')", "text", [("'a,b'", "a,b", "a,b")]),
    ("JSON", "text", [('\'{"b": 1.10, "a": [null]}\'', '{"b": 1.10, "a": [null]}', '{"b": 1.10, "a": [null]}')]),
    ("VARBINARY(9)", "text", [("x'00ff5c'", "\\\\x00ff5c", "AP9c")]),
    ("BLOB", "text", [("x'09'", "\\\\x09", "CQ==")]),
    ("UUID", "text", [("'0000000A-0000-0000-0000-00000000000B'", *["0000000a-0000-0000-0000-00000000000b"] * 2)]),
    ("INET6", "text", [("'::1'", "::1", "::1")]),
    ("MEDIUMTEXT CHARACTER SET latin1", "text", [("'é'", "é", "é")]),
]


@pytest.mark.parametrize(("declared", "kind", "values"), TYPES, ids=[declared for declared, *_rest in TYPES])
@pytest.mark.parametrize("as_query", [False, True])
def test_a_lookup_and_the_export_write_the_same_line_in_any_zone(make, admin, declared, kind, values, as_query):
    source = {"query": "SELECT * FROM t WHERE ':x' <> '%s' -- all"} if as_query else {"table": "t"}
    database = make(f"CREATE TABLE t (id INT PRIMARY KEY, v {declared})", "INSERT INTO t VALUES (0, NULL)", **source)
    for number, (value, _text, _json) in enumerate(values, 1):
        admin.execute(f"INSERT INTO t VALUES ({number}, {value})")
    lines = []
    for zone in ("+12:45", "-09:30"):
        admin.execute("SET GLOBAL time_zone = %s", (zone,))
        rows, kinds = rows_of(database, "id", "v")
        records = look_up(database, *map(str, range(len(values) + 1)))
        assert [(b"%d" % number, records[str(number)].features(["v"])) for number in range(len(rows))] == rows
        lines.append(rows)
    admin.execute("SET GLOBAL time_zone = SYSTEM")
    assert lines[0] == lines[1] == [(b"0", b"\\N"), *((b"%d" % n, v[1].encode()) for n, v in enumerate(values, 1))]
    assert kinds == ["integer", kind]
    assert records["0"].values == {"id": 0, "v": None}
    for number, (_value, _text, plain_value) in enumerate(values, 1):
        assert json.loads(json.dumps(records[str(number)].values["v"])) == plain_value


def test_any_text_is_one_field(make, admin):
    database = make("CREATE TABLE t (id INT PRIMARY KEY, v MEDIUMTEXT, b MEDIUMBLOB)", table="t")
    for number, text in enumerate(NASTY):
        admin.execute("INSERT INTO t VALUES (%s, %s, %s)", (number, text, text.encode()))
    rows, _kinds = rows_of(database, "id", "v", "b")
    records = look_up(database, *map(str, range(len(NASTY))))
    for text, (record_id, v, b) in zip(NASTY, rows, strict=True):
        assert unescape(v).decode() == text
        assert unescape(b) == b"\\x" + text.encode().hex().encode()
        assert records[record_id.decode()].features(["v", "b"]) == v + b"\t" + b
        assert records[record_id.decode()].values["v"] == text
        assert base64.b64decode(records[record_id.decode()].values["b"]) == text.encode()


POSTGRESQL = [
    ("bool", "true", b"t", True),
    ("float8", "'-Infinity'", b"-inf", "-inf"),
    ("float8", "'NaN'", b"nan", "nan"),
    ("numeric", "'NaN'", b"NaN", "NaN"),
    ("numeric", "1e30", b"1" + b"0" * 30, 10**30),
    ("numeric(10,2)", "7", b"7.00", 7.0),
    ("timestamptz", "'2026-11-22 15:45:00.5+09'", b"2026-11-22 06:45:00.500000+00", "2026-11-22 06:45:00.500000+00"),
    ("date", "'2026-11-22'", b"2026-11-22", "2026-11-22"),
    ("time", "'15:45:00'", b"15:45:00", "15:45:00"),
    ("interval", "'-1 day 03:00'", b"-21:00:00", "-21:00:00"),
    ("uuid", "'0000000a-0000-0000-0000-00000000000b'", *[b"0000000a-0000-0000-0000-00000000000b"] * 2),
    ("bytea", r"'\x00ff'", rb"\\x00ff", "AP8="),
    ("jsonb", """'{"b": "\\t", "a": [null, 1]}'""", b'{"a": [null, 1], "b": "\\\\t"}', '{"a": [null, 1], "b": "\\t"}'),
    ("numeric[]", "'{1.50,NULL}'", b'["1.50", null]', '["1.50", null]'),
    ("money", "12.5", b"$12.50", "$12.50"),
]


@pytest.mark.parametrize(("declared", "value", "line", "plain_value"), POSTGRESQL)
def test_values_of_other_types_than_mysqls(on_postgresql, declared, value, line, plain_value):
    database = on_postgresql(f"CREATE TABLE t (id int, v {declared})", f"INSERT INTO t VALUES (1, {value})")
    lines = []
    for zone in ZONES:
        on_postgresql(f"ALTER ROLE postgres SET TimeZone = '{zone}'", "ALTER ROLE postgres SET DateStyle = 'SQL, DMY'")
        lines += rows_of(database, "id", "v")[0]
        record = look_up(database, "1")["1"]
        lines.append((b"1", record.features(["v"])))
    on_postgresql("ALTER ROLE postgres RESET ALL")
    assert set(lines) == {(b"1", line)}
    assert record.values["v"] == (plain_value.decode() if isinstance(plain_value, bytes) else plain_value)


def test_a_type_without_a_text_is_named(on_postgresql):
    database = on_postgresql("CREATE TABLE t (id int, place inet)", "INSERT INTO t VALUES (1, '127.0.0.1')")
    assert "'place': a value of the type IPv4Address" in message(InputError, lambda: rows_of(database, "id", "place"))
    assert "'place'" in message(InputError, lambda: look_up(database, "1")["1"].values)
    assert look_up(database, "1")["1"].features(["id"]) == b"1"


def test_an_enum_is_its_value_and_a_time_that_utc_cannot_hold_is_named():
    import enum
    from datetime import datetime, timedelta, timezone

    class Size(enum.Enum):
        BIG = "a\tb"

    assert field("v", Size.BIG) == b"a\\tb"
    assert plain("v", Size.BIG) == "a\tb"
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    assert "column 'v': a value of the type datetime" in message(InputError, lambda: field("v", early))


# --- single records --------------------------------------------------------------------------------------------------


def test_only_the_exact_text_is_a_records_id(make, admin):
    database = make("CREATE TABLE t (id VARCHAR(100) COLLATE utf8mb4_general_ci, n INT, KEY (id))", table="t")
    ids = ["a", "A", "7", "007", "7abc", "é", " x", "\\x00", "😀", "tab\t", "\\N", "%s", "it's"]
    for n, record_id in enumerate(ids):
        admin.execute("INSERT INTO t VALUES (%s, %s)", (record_id, n))
    absent = ["á", "a ", "7.0", "x", "e\u0301", "\udcff", "", "' OR 1=1 -- ", "\0", "A\0"]
    for source in ({"table": "t"}, {"query": "SELECT * FROM t"}):
        records = look_up(make(**source), *ids, *absent)
        assert {record_id: record.values["n"] for record_id, record in records.items()} == {
            record_id: n for n, record_id in enumerate(ids)
        }
    admin.execute("UPDATE t SET id = 'pad ' WHERE id = 'a'")
    assert list(look_up(database, "pad", "pad ")) == ["pad "]


GARBAGE = [
    "7abc",
    "07",
    "+7",
    " 7",
    "7 ",
    "x",
    "",
    "9" * 400,
    str(1 << 64),
    "é",
    "😀",
    "\0",
    "nan",
    "1e3",
    "\\x",
    "\\xzz",
    "0x7",
]
IDS = [
    ("INT", "7", ["7"]),
    ("SMALLINT", "7", ["7"]),
    ("BIGINT UNSIGNED", "18446744073709551615", ["18446744073709551615"]),
    ("DECIMAL(10,2)", "7", ["7.00"]),
    ("DOUBLE", "0.1", ["0.1"]),
    ("YEAR", "2026", ["2026"]),
    ("DATE", "'2026-11-22'", ["2026-11-22"]),
    ("DATETIME", "'2026-11-22 15:45:00'", ["2026-11-22 15:45:00"]),
    ("TIME", "'15:45:00'", ["15:45:00"]),
    ("VARBINARY(20)", "x'00ff'", ["\\x00ff"]),
    ("UUID", "'0000000A-0000-0000-0000-00000000000B'", ["0000000a-0000-0000-0000-00000000000b"]),
    ("INET6", "'::1'", ["::1"]),
    ("ENUM('a', 'b')", "'a'", ["a"]),
    ("CHAR(9) CHARACTER SET latin1", "'é9'", ["é9"]),
]


@pytest.mark.parametrize(("declared", "value", "ids"), IDS, ids=[declared for declared, *_rest in IDS])
@pytest.mark.parametrize("as_query", [False, True])
def test_an_id_of_any_type_is_found_by_an_index_and_garbage_is_not(make, admin, declared, value, ids, as_query):
    make(f"CREATE TABLE t (id {declared} PRIMARY KEY, n INT)", f"INSERT INTO t VALUES ({value}, 1)", table="t")
    if "INT" in declared and "6" not in declared:
        admin.execute("INSERT INTO t SELECT seq, 0 FROM seq_1000_to_3000")
    database = make(**({"query": "SELECT * FROM t"} if as_query else {"table": "t"}))
    rows, _kinds = rows_of(database, "id", "n")
    assert ids[0].replace("\\", "\\\\").encode() in [row[0] for row in rows]
    with statements() as executed_statements:
        assert list(look_up(database, *ids)) == ids
    statement, parameters = next(executed for executed in reversed(executed_statements) if "WHERE" in executed[0])
    if not ("YEAR" in declared and as_query):  # with one row, the whole table is read as fast
        admin.execute("EXPLAIN " + statement, parameters)
        plan = dict(zip([column[0] for column in admin.description], admin.fetchone(), strict=True))
        assert plan["key"] == "PRIMARY" or plan["table"] is None or plan["type"] in ("const", "system"), plan
    with closing(open_reader(database._settings)()) as reader:
        for garbage in GARBAGE:
            assert reader.records([garbage]) == {}
        assert list(reader.records([*GARBAGE, *ids])) == ids


@contextmanager
def statements():
    """Yield a list that fills with the statements that SQLAlchemy runs, and their parameters."""
    executed_statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        executed_statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield executed_statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("declared", "value", "record_id"),
    [
        ("int", "7", "7"),
        ("smallint", "7", "7"),
        ("numeric", "7.0", "7.0"),
        ("char(5)", "'ab'", "ab   "),
        ("text", r"'\x00ff'", r"\x00ff"),
        ("bytea", r"'\x00ff'", r"\x00ff"),
        ("uuid", "'0000000a-0000-0000-0000-00000000000b'", "0000000a-0000-0000-0000-00000000000b"),
        ("date", "'2026-11-22'", "2026-11-22"),
        ("timestamptz", "'2026-11-22 15:45+00'", "2026-11-22 15:45:00+00"),
    ],
)
@pytest.mark.parametrize("query", [None, "SELECT *, ':x'::text FROM t"])
def test_ids_of_postgresqls_types(on_postgresql, declared, value, record_id, query):
    database = on_postgresql(f"CREATE TABLE t (id {declared})", f"INSERT INTO t VALUES ({value})", query=query)
    assert list(look_up(database, *GARBAGE, record_id, "99999999999")) == [record_id]


def test_more_ids_than_one_statement_takes(make, monkeypatch):
    monkeypatch.setattr("predictions.sources.sqlalchemy_reader.MAX_IDS", 10)
    database = make("CREATE TABLE t AS SELECT seq AS id FROM seq_1_to_100", table="t")
    assert len(look_up(database, *map(str, range(200)))) == 100


def test_a_reader_survives_what_happens_to_the_server_and_to_the_table(make, admin, mariadb):
    database = make("CREATE TABLE t (id INT PRIMARY KEY, n INT)", "INSERT INTO t VALUES (1, 5)", table="t")
    with closing(open_reader(database._settings)()) as reader:
        assert reader.records(["1"])["1"].values == {"id": 1, "n": 5}
        admin.execute("ALTER TABLE t ADD m INT DEFAULT 6, DROP n")
        assert reader.records(["1"])["1"].values == {"id": 1, "m": 6}
        assert "no column 'n'" in message(InputError, lambda: reader.records(["1"])["1"].features(["n"]))
        admin.execute("ALTER TABLE t RENAME COLUMN id TO other")
        assert "no column 'id'" in message(InputError, lambda: reader.records(["1"]))
        admin.execute("ALTER TABLE t RENAME COLUMN other TO id")
        assert reader.records(["1"])["1"].values == {"id": 1, "m": 6}
        admin.execute(
            "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'predictions'"
        )
        for (session,) in admin.fetchall():
            admin.execute(f"KILL {session}")
        assert reader.records(["1"])["1"].values == {"id": 1, "m": 6}
        admin.execute("DROP TABLE t")
        assert "no table or view 't'" in message(InputError, lambda: reader.records(["1"]))


def test_a_forked_process_leaves_its_parents_session_alone(make):
    database = make(
        "CREATE TABLE t (id INT PRIMARY KEY)",
        "INSERT INTO t VALUES (1)",
        query="SELECT id, connection_id() AS c FROM t",
    )
    with closing(open_reader(database._settings)()) as reader:
        before = reader.records(["1"])["1"].values["c"]
        child = os.fork()
        if not child:
            reader.forget()
            reader_module._inherited.clear()  # as at a normal exit of the process
            gc.collect()
            os._exit(0 if reader.records(["1"])["1"].values["c"] != before else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert reader.records(["1"])["1"].values["c"] == before


def test_a_lookup_waits_no_longer_than_it_may(make, admin, mariadb):
    database = make("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)", table="t", timeout=1.0)
    slow = make(query="SELECT id, SLEEP(20) AS n FROM t", timeout=1.0)
    with (
        closing(open_reader(database._settings)()) as reader,
        closing(open_reader(slow._settings)()) as slow_reader,
        closing(mariadb.connect()) as other_session,
    ):
        assert reader.records(["1"])
        with other_session.cursor() as cursor:
            cursor.execute("LOCK TABLES t WRITE")
            started = time.monotonic()
            assert "no answer within 1 s (database.timeout)" in message(ServiceError, lambda: reader.records(["1"]))
            assert 0.5 < time.monotonic() - started < 30
            cursor.execute("UNLOCK TABLES")
        assert reader.records(["1"])
        started = time.monotonic()
        assert "no answer within 1 s" in message(ServiceError, lambda: slow_reader.records(["1"]))
        assert time.monotonic() - started < 15


# --- the snapshot ----------------------------------------------------------------------------------------------------


def test_a_snapshot_is_one_moment_whatever_is_written_meanwhile(make, admin, mariadb, monkeypatch):
    monkeypatch.setattr(module, "FETCH_ROWS", 500)
    database = make("CREATE TABLE t (id INT PRIMARY KEY, n INT, m INT)", table="t")
    admin.execute(f"INSERT INTO t SELECT seq, 100, NULL FROM seq_1_to_{ACCOUNTS}")
    stop, transfers = threading.Event(), []

    def transfer():
        # From the end of the table to its start: a read that is not of one moment misses money or counts it twice.
        with closing(mariadb.connect()) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                number = len(transfers) % (ACCOUNTS // 2) + 1
                cursor.execute("BEGIN")
                cursor.execute("UPDATE t SET n = n - 7 WHERE id = %s", [ACCOUNTS + 1 - number])
                cursor.execute("UPDATE t SET n = n + 7 WHERE id = %s", [number])
                cursor.execute("INSERT INTO t VALUES (%s, 1, NULL)", [ACCOUNTS + 1 + len(transfers)])
                cursor.execute("COMMIT")
                transfers.append(number)

    writer = threading.Thread(target=transfer)
    writer.start()
    try:
        with database.snapshot(["id", "n", "m"]) as snapshot:
            before = len(transfers)
            rows = []
            [share] = snapshot.shares()
            for block in share.blocks():
                rows += [line.split(b"\t") for line in split_lines(block)]
                time.sleep(0.01)
            meanwhile = len(transfers) - before
    finally:
        stop.set()
        writer.join()
    assert meanwhile > 100
    assert len(rows) == snapshot.expected
    assert sum(int(n) for _id, n, _m in rows) == ACCOUNTS * 100 + len(rows) - ACCOUNTS


def test_a_snapshot_is_read_only_and_notes_a_table_of_another_engine(make, admin):
    database = make("CREATE TABLE t (id INT) ENGINE=MyISAM", "CREATE TABLE u (id INT)", table="t")
    with database.snapshot(["id"]) as snapshot:
        assert "MyISAM" in snapshot.note
        with pytest.raises(PredictionsError, match="READ ONLY"), database.errors("timeout"):
            snapshot._connection.exec_driver_sql("INSERT INTO u VALUES (1)")
    with make(table="u").snapshot(["id"]) as snapshot:
        assert (snapshot.note, snapshot.id, snapshot.expected) == (None, None, 0)


def test_a_session_that_ends_loses_the_snapshot(make, admin, monkeypatch):
    monkeypatch.setattr(module, "FETCH_ROWS", 10)
    database = make("CREATE TABLE t AS SELECT seq AS id, REPEAT('x', 500) AS v FROM seq_1_to_100000", table="t")

    def lose():
        with database.snapshot(["id", "v"]) as snapshot:
            blocks = snapshot.blocks()
            next(blocks)
            admin.execute(
                "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'predictions'"
            )
            for (session,) in admin.fetchall():
                admin.execute(f"KILL {session}")
            list(blocks)

    assert "the snapshot was lost" in message(SnapshotLostError, lose)


def test_an_export_that_fails_does_not_read_the_rest(make, monkeypatch, recwarn):
    monkeypatch.setattr(module, "FETCH_ROWS", 1)
    slow = make(
        "CREATE TABLE t AS SELECT seq AS id FROM seq_1_to_10",
        query="SELECT id, SLEEP(20 * (id > 5)) AS v, REPEAT('x', 100000) AS w FROM (SELECT id FROM t LIMIT 10) AS u",
    )
    monkeypatch.setattr(module.Source, "count", lambda _source, _connection: 10)

    def interrupt():
        with slow.snapshot(["id", "v", "w"]) as snapshot:
            for _block in snapshot.blocks():
                raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    gc.collect()
    assert time.monotonic() - started < 20
    assert not recwarn.list


def test_an_export_end_to_end(make, tmp_path):
    database = make(
        "CREATE TABLE orders (id INT PRIMARY KEY, country VARCHAR(9), amount DECIMAL(9,2), at DATETIME, paid INT)",
        "INSERT INTO orders SELECT seq, IF(seq % 2, 'AT', NULL), seq / 4, '2026-11-22', seq % 2 FROM seq_1_to_1000",
        table="orders",
    )
    model = ModelSettings(features=["country", "amount", "at"], label="paid")
    settings = Settings(name="test", database=database._settings, model=model)
    progress_calls = []
    folder = export(
        settings, Storage(str(tmp_path), "test"), lambda *arguments: progress_calls.append(arguments), print
    )
    [part] = folder.files("export")
    lines = split_lines(b"".join(folder.blocks(part)))
    assert sorted(lines)[0] == b"1\tAT\t0.25\t2026-11-22 00:00:00\t1"
    manifest = manifest_of(folder)
    assert manifest.export.rows == len(lines) == 1000
    assert [column.type for column in manifest.features] == ["text", "real", "date"]
    assert progress_calls[-1] == (1000, 1000)
    assert b"password" not in folder.read("manifest.json")
    records = look_up(database, "7")
    assert b"7\t" + records["7"].features(["country", "amount", "at", "paid"]) in lines


# --- names and errors ------------------------------------------------------------------------------------------------


def test_names_are_quoted(make, admin):
    make(table="t")
    admin.execute("CREATE OR REPLACE DATABASE `other.db`")
    columns = "`an id` INT PRIMARY KEY, `select` INT, `a``b` INT, `c%d:e` INT"
    for schema, table in [("test", "odd `t"), ("test", "with.dot"), ("other.db", "order")]:
        quoted = f"`{schema}`.`{table.replace('`', '``')}`"
        admin.execute(f"CREATE TABLE {quoted} ({columns})")
        admin.execute(f"INSERT INTO {quoted} VALUES (1, 2, 3, 4)")
        database = make(table=table if schema == "test" else f"{schema}.{table}", id="an id")
        assert rows_of(database, "an id", "select", "a`b", "c%d:e") == ([(b"1", b"2", b"3", b"4")], ["integer"] * 4)
        assert look_up(database, "1")["1"].values == {"an id": 1, "select": 2, "a`b": 3, "c%d:e": 4}
        assert database.count() == 1
        assert [column.name for column in database.columns()] == ["an id", "select", "a`b", "c%d:e"]
    admin.execute("DROP DATABASE `other.db`")


@pytest.mark.parametrize(
    ("source", "columns", "text"),
    [
        ({"table": "order"}, "id n", "no table or view 'order' in mysql.*; did you mean 'orders'"),
        ({"table": "nope.orders"}, "id n", "no table or view 'nope.orders'"),
        ({"table": "orders"}, "id m", "no column 'm' in orders of mysql"),
        ({"table": "orders"}, "ID n", "no column 'ID'"),
        ({"query": "SELECT id FROM orders"}, "id n", "no column 'n' in the query"),
        ({"query": "SELECT nope FROM orders"}, "id n", "Unknown column 'nope'"),
        ({"query": "SELECT FROM orders"}, "id n", "error in your SQL syntax"),
        ({"query": "DROP TABLE orders"}, "id n", "error in your SQL syntax"),
        ({"query": "SELECT id, n FROM orders) x; DROP TABLE orders; -- "}, "id n", "error in your SQL syntax"),
        ({"query": "SELECT id, id FROM orders"}, "id n", "Duplicate column name 'id'"),
        ({"query": "SELECT 1 AS id, (SELECT n FROM nope) AS n"}, "id n", "'test.nope' doesn't exist"),
    ],
)
def test_bad_sources_are_one_clear_line(make, source, columns, text):
    database = make("CREATE TABLE orders (id INT, n INT)", "INSERT INTO orders VALUES (1, 1)", **source)
    assert re.search(text, message(InputError, lambda: rows_of(database, *columns.split())))
    assert make(table="orders").count() == 1


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mysql+pymysql:/x:secret@h/d", "must be sqlite:///PATH"),
        ("mysql+pymysql://u:secret@h:port/d", "not a URL of SQLAlchemy"),
        ("mysql+pymysql://u:p@secret@h/d", "write %40 for @"),
        ("mysql+pymysql://u:p@sec/ret@h/d", "write %40 for @"),
        ("nosql+driver://u:secret@h/d", "SQLAlchemy does not know nosql"),
        ("mysql+mysqldb://u:secret@h/d", "MySQLdb, the driver of mysql.mysqldb, is not installed"),
        ("mysql://u:secret@h/d", "must be sqlite:///PATH"),
        ("sqlite+pysqlite:///x.db", "write sqlite:///PATH for SQLite"),
        ("postgresql+psycopg_async://u:secret@h/d", "choose a synchronous driver"),
    ],
)
def test_bad_urls_are_one_clear_line(url, text):
    assert re.search(text, message(InputError, lambda: open_database(DatabaseSettings(url=url, table="t", id="id"))))


def test_connection_errors_are_one_clear_line(mariadb, url):
    def columns(url):
        database = open_database(DatabaseSettings(url=url, table="t", id="id", timeout=1.0))
        assert "secret" not in database.name
        return database.columns

    address = f"127.0.0.1:{mariadb.port}"
    text = message(ServiceError, columns(f"mysql+pymysql://predictions:secret@{address}/test"))
    assert text.startswith(f"mysql+pymysql://{address}/test: Access denied")
    assert "Unknown database 'nope'" in message(InputError, columns(url.replace("/test", "/nope")))
    assert "an option" in message(InputError, columns(f"{url}?nope=secret"))
    assert "an option" in message(InputError, columns(f"{url}?charset=secret"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        unresponsive_url = f"mysql+pymysql://u:secret@127.0.0.1:{port}/d"
        assert "refused" in message(ServiceError, columns(unresponsive_url))
        listener.listen()
        started = time.monotonic()
        assert str(port) in message(ServiceError, columns(unresponsive_url))  # it only accepts connections
        assert time.monotonic() - started < 30


def test_a_missing_library_is_named(monkeypatch, url):
    import sys

    monkeypatch.setitem(sys.modules, "predictions.sources.sqlalchemy", None)
    with pytest.raises(InputError, match=r"pip install 'predictions\[sqlalchemy\]'"):
        open_database(DatabaseSettings(url=url, table="t", id="id"))
