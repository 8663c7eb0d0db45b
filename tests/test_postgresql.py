"""Records of a real PostgreSQL: the snapshot, the record lines and single records, under concurrent changes."""

import os
import random
import re
import signal
import threading
import time
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from conftest import PATIENCE, manifest_of
from inprocess import without

from predictions.errors import InputError, ServiceError, SnapshotLostError
from predictions.formats.record_line import split_lines
from predictions.settings import DatabaseSettings, ModelSettings, Settings, load_settings
from predictions.sources import open_database, open_reader
from predictions.sources import postgresql as module
from predictions.stages.export import export
from predictions.stages.init import write_settings
from predictions.storage import Storage

WRITES = 1_000  # rows per second that the writer changes
OPEN = 200  # turns until the writer closes an account that it opened
READ_SECONDS = 2  # of an export while the writer runs
NASTY = [
    "",
    " ",
    "\\",
    "\\N",
    "\\.",
    "a\tb",
    "a\nb",
    "a\r\nb",
    "\b\f\v\x01\x7f",
    "'\"`",
    "é\u2028\u202e😀",
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def admin(postgresql):
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def schema(admin, request):
    """A schema for one test, first on the search path."""
    name = f"t{abs(hash(request.node.nodeid)):x}"
    admin.execute(f"CREATE SCHEMA {name}")
    admin.execute(f"SET search_path = {name}")
    yield name
    admin.execute("RESET search_path")
    admin.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def make(admin, postgresql, schema):
    """Run a script, and open a source in the test's schema."""

    def make(script="", table=None, query=None, id="id", url=None, **values):  # noqa: A002
        if script:
            admin.execute(script)
        url = f"{url or postgresql.url}?options=-csearch_path%3D{schema}"
        return open_database(DatabaseSettings(url=url, table=table, query=query, id=id, **values))

    return make


def read(database, *columns):
    """Return the fields of all records, of all shares, in order; and the columns' types."""
    with database.snapshot(columns) as snapshot:
        lines = [line for share in snapshot.shares() for block in share.blocks() for line in split_lines(block)]
        return sorted(tuple(line.split(b"\t")) for line in lines), [column.type for column in snapshot.columns]


def record_of(database, record_id):
    with closing(open_reader(database._settings)()) as reader:
        return reader.records([record_id]).get(record_id)


def settings_for(database, tmp_path, features, label):
    settings = database._settings
    model = ModelSettings(features=features, label=label)
    return Settings(name="test", database=settings, model=model), Storage(str(tmp_path / "storage"), "test")


def quiet(*_message):
    pass


# --- lines -----------------------------------------------------------------------------------------------------------

TYPES = {
    "int2": ["-32768", "7"],
    "int8": ["9223372036854775807"],
    "numeric": ["7", "7.0", "-0.000000000000000000001", "NaN", "Infinity", "123456789012345678901234567890.5"],
    "numeric(10,2)": ["0.10", "7.00"],
    "float4": ["0.1", "1e30", "-0", "NaN"],
    "float8": ["0.1", "0.30000000000000004", "1e300", "-Infinity", "123456789012345680"],
    "boolean": ["true", "false"],
    "date": ["2026-11-22", "0044-03-15 BC", "infinity"],
    "time": ["15:45:00.5"],
    "timestamp": ["2026-11-22 15:45:00.123456"],
    "timestamptz": ["2026-11-22 15:45:00+09", "2026-07-01 00:00:00 Europe/Vienna"],
    "interval": ["1 year -2 days 03:04:05.6", "-1 mon"],
    "char(5)": ["a", "ab   ", ""],
    "varchar": NASTY,
    "text": NASTY,
    "bytea": ["\\x", "\\x00ff5c090a", "\\x41"],
    "uuid": ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    "json": ['{"a":  [1, 2], "b": "\\u00e9\\n"}', "null"],
    "jsonb": ['{"b": 1.10, "a": "x\\ty"}'],
    "text[]": ['{a,NULL,"b,c","\\\\ \\"","NULL"}', "{}", "{{1,2},{3,4}}"],
    "float8[]": ["{0.1,NaN,0.30000000000000004}"],
    "timestamptz[]": ['{"2026-11-22 15:45:00+09"}'],
    "mood": ["so so", "gut"],
    "money": ["1234.5"],
    "inet": ["10.0.0.0/8"],
    "bit(3)": ["101"],
    "int4range": ["[1,7)"],
    "point": ["(0.1,0.2)"],
    "tsvector": ["a fat cat"],
    "xml": ["<a>1</a>"],
    "percent": ["12.5"],
}
# Settings of sessions; under each, PostgreSQL writes almost every type differently.
SESSION_SETTINGS = [
    {
        "DateStyle": "German",
        "IntervalStyle": "iso_8601",
        "TimeZone": "Asia/Tokyo",
        "extra_float_digits": "-10",
        "bytea_output": "escape",
        "client_encoding": "LATIN1",
    },
    {
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "sql_standard",
        "TimeZone": "America/New_York",
        "extra_float_digits": "3",
        "bytea_output": "hex",
        "client_encoding": "UTF8",
        "statement_timeout": "0",
    },
]


@pytest.fixture(scope="module")
def urls_of_users(admin, postgresql):
    """The URLs of users whose sessions begin with these settings."""
    urls = []
    for number, values in enumerate(SESSION_SETTINGS):
        admin.execute(f"CREATE ROLE user{number} LOGIN SUPERUSER PASSWORD 'secret'")
        for name, value in values.items():
            admin.execute(f"ALTER ROLE user{number} SET {name} = '{value}'")
        address = urlsplit(postgresql.url)
        urls.append(f"postgresql://user{number}:secret@{address.hostname}:{address.port}/postgres")
    yield urls
    for number in range(len(SESSION_SETTINGS)):
        admin.execute(f"DROP ROLE user{number}")


def test_a_line_is_the_same_in_the_export_and_for_a_lookup_whatever_the_sessions_are_set_to(make, admin, urls_of_users):
    admin.execute(
        "CREATE TYPE mood AS ENUM ('so so', 'gut'); CREATE DOMAIN percent AS numeric(5,2) CHECK (VALUE <= 100)"
    )
    names = [f"c{number}" for number in range(len(TYPES))]
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(names, TYPES, strict=True))
    admin.execute(f"CREATE TABLE t (id text PRIMARY KEY, {columns})")
    for name, values in zip(names, TYPES.values(), strict=True):
        for number, value in enumerate(values):
            admin.execute(f"INSERT INTO t (id, {name}) VALUES (%s, %s)", [f"{name}-{number}", value])
    for number, text in enumerate(NASTY[1:]):
        admin.execute("INSERT INTO t (id, c0) VALUES (%s, 1) ON CONFLICT DO NOTHING", [f"{number}{text}"])
    exported, kinds = read(make(table="t", url=urls_of_users[0]), "id", *names)
    by_kind = dict(zip(TYPES, kinds[1:], strict=True))
    assert {kind for kind, column_type in by_kind.items() if column_type == "real"} == {
        *("numeric", "numeric(10,2)", "float4", "float8", "percent")
    }
    assert {kind for kind, column_type in by_kind.items() if column_type == "date"} == {
        "date",
        "timestamp",
        "timestamptz",
    }
    assert len(exported) == sum(map(len, TYPES.values())) + len(NASTY) - 1
    with closing(open_reader(make(table="t", url=urls_of_users[1])._settings)()) as reader:
        ids = [row[0] for row in admin.execute("SELECT id FROM t")]
        records = reader.records(ids)
        assert records.keys() == set(ids)
        looked_up = sorted(
            (record.features(["id"]), *record.features(names).split(b"\t")) for record in records.values()
        )
    assert looked_up == exported
    fields = {line[0]: line[1:] for line in exported}
    for kind, number, field in [
        ("float8", 1, b"0.30000000000000004"),
        ("numeric", 1, b"7.0"),
        ("boolean", 0, b"t"),
        ("timestamptz", 0, b"2026-11-22 06:45:00+00"),
        ("interval", 0, b"1 year -2 days +03:04:05.6"),
        ("char(5)", 0, b"a    "),
        ("bytea", 1, rb"\\x00ff5c090a"),
        ("text", NASTY.index("a\r\nb"), rb"a\r\nb"),
        ("text", NASTY.index("\\N"), rb"\\N"),
        ("money", 0, b"$1,234.50"),
    ]:
        column = list(TYPES).index(kind)
        assert fields[f"c{column}-{number}".encode()][column] == field


def test_values_have_the_types_of_their_columns(make):
    database = make(
        "CREATE TABLE t (id int PRIMARY KEY, i int8, n numeric, f float8, x float8, b boolean, d date, y bytea, z text);"
        "INSERT INTO t VALUES (1, 9223372036854775807, 7.50, 0.1, 'NaN', true, '2026-11-22', '\\x00ff', E'a\\tb');"
        "INSERT INTO t VALUES (2)",
        table="t",
    )
    values = {
        "id": 1,
        "i": 2**63 - 1,
        "n": 7.5,
        "f": 0.1,
        "x": "NaN",
        "b": True,
        "d": "2026-11-22",
        "y": "AP8=",
        "z": "a\tb",
    }
    assert record_of(database, "1").values == values
    assert record_of(database, "2").values == {**dict.fromkeys(values), "id": 2}


# --- IDs -------------------------------------------------------------------------------------------------------------


def test_of_columns_with_one_name_the_last_one_counts(make):
    database = make(query="SELECT 7 AS id, 'order' AS name, 'Ann' AS name, 1.5 AS amount")
    record = record_of(database, "7")
    assert record.values == {"id": 7, "name": "Ann", "amount": 1.5}
    assert record.features(["name", "amount"]) == b"Ann\t1.5"


@pytest.mark.parametrize(
    ("kind", "stored", "ids", "other_ids"),
    [
        ("bigint", ["7", "-8"], ["7", "-8"], ["007", "7.0", " 7", "+7", "٧", "9223372036854775808", "x", "", "-0"]),
        ("numeric", ["7", "8.50"], ["7", "8.50"], ["7.0", "8.5", "07", "x", ""]),
        ("text", ["7", "007", "a ", "A"], ["7", "007", "a ", "A"], ["07", "a", "a  ", "é"]),
        ("char(4)", ["ab"], ["ab  "], ["ab", "ab   ", "ab  x"]),
        ("varchar(3)", ["abc"], ["abc"], ["abcd", "ABC"]),
        ("citext", ["Ab"], ["Ab"], ["ab", "AB"]),
        ("uuid", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"], ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"], ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc999c0b4ef8bb6d6bb9bd380a11", "x"]),
        ("mood", ["gut"], ["gut"], ["Gut", "schlecht", ""]),
        ("date", ["2026-11-22"], ["2026-11-22"], ["22.11.2026", "20261122", "2026-11-31", "today"]),
        ("timestamptz", ["2026-11-22 15:45:00+09"], ["2026-11-22 06:45:00+00"], ["2026-11-22 15:45:00+09", "now"]),
        ("bytea", ["\\x00ff"], ["\\x00ff"], ["\\x00FF", "\\000\\377", "\\x0"]),
        ("boolean", ["true"], ["t"], ["true", "1", "x"]),
        ("float8", ["0.1"], ["0.1"], ["0.10", "1e-1", "x"]),
    ],
)  # fmt: skip
def test_an_id_is_matched_by_its_exact_text(make, admin, kind, stored, ids, other_ids):
    admin.execute("CREATE EXTENSION IF NOT EXISTS citext SCHEMA public")
    admin.execute("CREATE TYPE mood AS ENUM ('so so', 'gut')")
    kind = "public.citext" if kind == "citext" else kind
    database = make(f"CREATE TABLE t (id {kind} PRIMARY KEY, n int)", table="t")
    for record_id in stored:
        admin.execute(f"INSERT INTO t VALUES (%s::text::{kind}, 1)", [record_id])
    with closing(open_reader(database._settings)()) as reader:
        requested = [*other_ids, *ids, "\udcff", "a\0b", "' OR 1=1 --"]
        records = reader.records(requested)  # all at once, and then each alone
        assert records.keys() == set(ids)
        for record_id in requested:
            assert (reader.records([record_id]).keys() == {record_id}) == (record_id in ids)


def test_a_lookup_of_a_key_goes_by_its_index(make, admin):
    database = make("CREATE TABLE t AS SELECT generate_series(1, 10000)::bigint AS id, 'x' AS t", table="t")
    admin.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
    admin.execute("ANALYZE t")
    with closing(open_reader(database._settings)()) as reader:
        assert reader.records(["1", "10000", "10001"]).keys() == {"1", "10000"}
    admin.execute("SELECT pg_stat_force_next_flush()")
    [(scans, by_index)] = admin.execute("SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 't'")
    with closing(open_reader(database._settings)()) as reader:
        reader.records(["7"])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        [(scans_after, by_index_after)] = admin.execute(
            "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 't'"
        )
        if by_index_after > by_index:
            break
        time.sleep(0.1)
    assert by_index_after > by_index
    assert scans_after == scans


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_ranges(monkeypatch):
    monkeypatch.setattr(module, "RANGE_PAGES", 2)


@pytest.mark.parametrize(
    ("script", "source", "shares"),
    [
        ("CREATE TABLE t (id int, n int, p text)", {"table": "t"}, 3),
        ("CREATE TABLE t (id int, n int, p text) PARTITION BY RANGE (id);"
         "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100);"
         "CREATE TABLE t2 PARTITION OF t DEFAULT", {"table": "t"}, 3),
        ("CREATE TABLE t (id int, n int, p text); CREATE TABLE child () INHERITS (t);"
         "INSERT INTO child SELECT -i, i, repeat('x', 500) FROM generate_series(1, 50) i", {"table": "t"}, 3),
        ("CREATE TABLE t (id int, n int, p text); CREATE VIEW v AS SELECT * FROM t", {"table": "v"}, 1),
        ("CREATE TABLE t (id int, n int, p text)", {"query": "SELECT id, n, n AS p FROM t -- all of them"}, 1),
    ],
    ids=["table", "partitions", "children", "view", "query"],
)  # fmt: skip
def test_every_record_is_in_one_share(make, admin, small_ranges, script, source, shares):
    admin.execute(script)
    admin.execute("INSERT INTO t SELECT i, i * 2, repeat('x', 500) FROM generate_series(1, 1000) i")
    admin.execute("DELETE FROM t WHERE id % 10 = 0")
    database = make(**source, connections=3)
    rows, kinds = read(database, "id", "n")
    expected = [
        (b"%d" % row[0], b"%d" % row[1]) for row in admin.execute(f"SELECT id, n FROM {source.get('table', 't')}")
    ]
    assert rows == sorted(expected)
    assert len(expected) == database.count() >= 900
    with database.snapshot(["id", "n"]) as snapshot:
        assert len(snapshot.shares()) == shares
        assert kinds == ["integer", "integer"]


def test_a_materialized_view_and_an_empty_table_are_sources(make):
    database = make("CREATE TABLE t (id int, n int); CREATE MATERIALIZED VIEW m AS SELECT 1 AS id, 2 AS n", table="m")
    assert read(database, "id", "n")[0] == [(b"1", b"2")]
    assert read(make(table="t"), "id", "n")[0] == []


def test_ranges_are_read_by_their_pages(make, admin, small_ranges):
    database = make(
        "CREATE TABLE t AS SELECT i AS id, repeat('x', 500) AS p FROM generate_series(1, 2000) i", table="t"
    )
    with database.snapshot(["id", "p"]) as snapshot:
        [statement, *_more] = snapshot.shares()[1].statements
    query = statement.removeprefix("COPY (").removesuffix(") TO STDOUT")
    plan = "\n".join(row[0] for row in admin.execute("EXPLAIN " + query))
    assert "Tid Range Scan" in plan
    assert "Seq Scan" not in plan


def test_names_are_quoted_and_schemas_are_known(make, schema):
    script = 'CREATE TABLE "odd ""table%s" ("an id" int PRIMARY KEY, "select" int, "a""b%s" int); INSERT INTO "odd ""table%s" VALUES (1, 2, 3)'
    for table in ('odd "table%s', f'{schema}.odd "table%s'):
        database = make(script, table=table, id="an id")
        script = ""
        assert read(database, "an id", "select", 'a"b%s')[0] == [(b"1", b"2", b"3")]
        assert record_of(database, "1").values == {"an id": 1, "select": 2, 'a"b%s': 3}


@pytest.mark.parametrize(
    ("source", "columns", "message"),
    [
        ({"table": "order"}, "id n", "no table or view 'order' in postgresql://127.0.0.1.*; did you mean 'orders'"),
        ({"table": "orders"}, "id amout", "no column 'amout' in orders of .*; did you mean 'amount'"),
        ({"query": "SELECT nope FROM orders"}, "id n", 'column "nope" does not exist'),
        ({"query": "DROP TABLE orders"}, "id n", "syntax error"),
        ({"query": "SELECT 1) AS q; DROP TABLE orders; SELECT * FROM (SELECT 1"}, "id n", "multiple commands"),
        ({"query": "SELECT nextval('s') AS id, 1 AS n"}, "id n", "read-only transaction"),
    ],
)
def test_bad_sources_are_named(make, source, columns, message):
    database = make("CREATE TABLE orders (id int, amount int); CREATE SEQUENCE s", **source)
    with pytest.raises(InputError, match=message):
        read(database, *columns.split())


def test_connection_errors_name_the_database_without_its_password(make, postgresql):
    port = urlsplit(postgresql.url).port
    for url, kind, message in [
        (f"postgresql://postgres:s3cret@127.0.0.1:{port}/postgres", ServiceError, "password authentication failed"),
        (f"{postgresql.url}x", ServiceError, "does not exist"),
        ("postgresql://postgres:s3cret@127.0.0.1:1/postgres", ServiceError, "refused"),
        ("postgresql://postgres:s3cret%zz@127.0.0.1:1/postgres", InputError, "not a URL of PostgreSQL"),
        ("postgresql://postgres:s3cret%ff%fe@127.0.0.1:1/postgres", InputError, "not a URL of PostgreSQL"),
        ("postgresql://postgres:x@s3cret@127.0.0.1:1/postgres", InputError, "write %40 for @"),
        ("postgresql://postgres:x/s3cret@127.0.0.1:1/postgres", InputError, "%2F for /"),
        ("oracle://scott:s3cret@h/x", InputError, "database.url: oracle…: it must be"),
    ]:  # fmt: skip
        with pytest.raises(kind, match=message) as caught:
            open_database(DatabaseSettings(url=url, table="t", id="id")).columns()
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_settings_with_a_password_are_for_their_owner_alone(make, postgresql, schema, tmp_path):
    make("CREATE TABLE t (id int PRIMARY KEY, n numeric, p bool)", table="t")
    path = tmp_path / "predictions.toml"
    write_settings(path, postgresql.url, f"{schema}.t", "id", "p", "test")
    assert path.stat().st_mode & 0o777 == 0o600
    settings = load_settings(path)
    assert settings.model.features == ["n"]
    assert settings.database.url == postgresql.url


# --- one snapshot ----------------------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Move amounts between accounts, open and close accounts, and change about `WRITES` rows per second.

    At any moment the balances add up to 0, and account 0 has the number of accounts.
    """

    def __init__(self, url, schema, accounts):
        super().__init__()
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(f"SET search_path = {schema}")
        self._stop_requested = threading.Event()
        self._accounts = accounts
        self.rows = 0
        self.pause = 0.0  # the longest one between two transactions, in seconds
        self.failed = None

    def run(self):
        try:
            self._write()
        except psycopg.Error as error:
            self.failed = error

    def _write(self):
        generator, cursor, began = random.Random(1), self._connection.cursor(), time.monotonic()
        add = "UPDATE accounts SET balance = balance + %s WHERE id = %s"
        count = "UPDATE accounts SET counted = counted + %s WHERE id = 0"
        [(base,)] = cursor.execute("SELECT max(id) + 1 FROM accounts")
        turn = 0
        last = began
        while not self._stop_requested.is_set():
            self.pause, last = max(self.pause, time.monotonic() - last), time.monotonic()
            amount = generator.randrange(1000)
            first, second = generator.randrange(1, self._accounts), generator.randrange(1, self._accounts)
            with self._connection.pipeline():
                cursor.execute("BEGIN")
                cursor.execute(add, [-amount, first])
                if turn % 2:
                    cursor.execute(add, [amount, second])
                else:
                    cursor.execute("INSERT INTO accounts VALUES (%s, %s)", [base + turn, amount])
                    cursor.execute(count, [1])
                if turn % 2 == 0 and turn >= OPEN:
                    closed = "DELETE FROM accounts WHERE id = %s RETURNING balance"
                    transfer = (
                        f"WITH closed AS ({closed}) UPDATE accounts a SET balance = a.balance + c.balance FROM closed c"
                    )
                    cursor.execute(f"{transfer} WHERE a.id = %s", [base + turn - OPEN, second])
                    cursor.execute(count, [-1])
                cursor.execute("COMMIT")
            self.rows += 2 if turn % 2 else 3 if turn < OPEN else 6
            turn += 1
            time.sleep(max(0.0, began + self.rows / WRITES - time.monotonic()))

    def stop(self):
        self._stop_requested.set()
        self.join()
        self._connection.close()


@contextmanager
def writing(url, schema, accounts):
    writer = Writer(url, schema, accounts)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()


@pytest.fixture(scope="session")
def account_count(full):
    """The number of accounts: an export has about forty statements, or with --full over a hundred."""
    return 200_000 if full else 60_000


@pytest.fixture
def accounts(admin, make, monkeypatch, account_count):
    monkeypatch.setattr(module, "RANGE_PAGES", 50)  # many statements, so that all connections are busy for a while
    admin.execute(
        "CREATE TABLE accounts (id bigint, balance bigint, counted int, pad text DEFAULT repeat('x', 100));"
        f"INSERT INTO accounts SELECT i, 0, CASE WHEN i = 0 THEN {account_count} END"
        f" FROM generate_series(0, {account_count - 1}) i"
    )
    admin.execute("ALTER TABLE accounts ADD PRIMARY KEY (id)")
    admin.execute("ANALYZE accounts")
    return make(table="accounts", connections=4)


def check_accounts(folder):
    """Check that the exported accounts are those of one moment."""
    rows = [
        line.split(b"\t")
        for path in folder.files("export")
        for block in folder.blocks(path)
        for line in split_lines(block)
    ]
    assert sum(int(row[1]) for row in rows) == 0
    assert len({row[0] for row in rows}) == len(rows)
    [counted] = [int(row[2]) for row in rows if row[0] == b"0"]
    assert counted == len(rows)


def test_an_export_is_one_snapshot_whatever_is_written_meanwhile(
    accounts, postgresql, schema, tmp_path, account_count, full
):
    settings, storage = settings_for(accounts, tmp_path, ["balance"], "counted")
    for _turn in range(20 if full else 2):
        with writing(postgresql.url, schema, account_count) as writer:
            while writer.rows < WRITES / 10:
                time.sleep(0.01)
            writer.pause, before, began = 0.0, writer.rows, time.monotonic()
            folder = export(settings, storage, quiet, quiet, rate=account_count / READ_SECONDS)
            written, seconds = writer.rows - before, time.monotonic() - began
        assert not writer.failed
        assert written > 100
        assert writer.pause < seconds / 2, "the writer was held up"
        assert seconds > READ_SECONDS / 2
        check_accounts(folder)
        manifest = manifest_of(folder)
        assert manifest.export.parts == 4
        assert manifest.snapshot.id
        assert manifest.snapshot.time < f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time.time() + 1))}"


@contextmanager
def replica_of(database, postgresql, schema, **settings):
    """A read replica without feedback to its primary, and its database as a source that two connections read."""
    settings = {
        "fsync": "off",
        "max_connections": "50",
        "max_wal_senders": "4",
        "hot_standby_feedback": "off",
    } | settings
    replica = postgresql.copy(postgresql.folder.parent / "replica", **settings)
    try:
        on_replica = {"url": f"{replica.url}?options=-csearch_path%3D{schema}", "connections": 2}
        yield replica, open_database(database._settings.model_copy(update=on_replica))
    finally:
        replica.remove()


def test_a_replica_is_a_source_too(accounts, postgresql, schema, tmp_path, account_count):
    with replica_of(accounts, postgresql, schema) as (_replica, database):
        settings, storage = settings_for(database, tmp_path, ["balance"], "counted")
        with writing(postgresql.url, schema, account_count) as writer:
            folder = export(settings, storage, quiet, quiet, rate=account_count / READ_SECONDS)
        assert not writer.failed
        check_accounts(folder)


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr("predictions.stages.export.PAUSE_SECONDS", 0.1)


def test_a_snapshot_that_a_replica_loses_is_taken_anew(accounts, admin, postgresql, schema, tmp_path, no_pause):
    messages, attempts_to_lose = [], {0}  # one message per lost attempt; the attempts are counted from 0
    with (
        replica_of(accounts, postgresql, schema, max_standby_streaming_delay="0") as (replica, database),
        psycopg.connect(replica.url, autocommit=True) as follower,
        without(),
    ):
        settings, storage = settings_for(database, tmp_path, ["balance"], "counted")

        def conflict(_done, _total):
            # Rows that the replica's snapshot sees are removed on the primary, and the replica has to follow.
            if len(messages) in attempts_to_lose:
                attempts_to_lose.remove(len(messages))
                admin.execute("UPDATE accounts SET pad = '' WHERE id BETWEEN 1 AND 1000")
                admin.execute("VACUUM accounts")
                [(end,)] = admin.execute("SELECT pg_current_wal_insert_lsn()")  # also what is not on disk yet
                deadline = time.monotonic() + PATIENCE
                while not follower.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [end]).fetchone()[0]:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

        folder = export(settings, storage, conflict, messages.append)
        check_accounts(folder)
        [text] = messages
        assert re.search("the snapshot was lost: .*; starting the export again", text)
        attempts_to_lose |= {1, 2, 3}
        with pytest.raises(SnapshotLostError, match="the snapshot was lost"):
            export(settings, storage, conflict, messages.append)
        assert len(messages) == 3
        assert storage.releases() == [folder.release]


def test_a_session_that_is_ended_loses_the_snapshot(accounts, admin, tmp_path, account_count, no_pause):
    database = open_database(accounts._settings.model_copy(update={"connections": 2}))
    settings, storage = settings_for(database, tmp_path, ["balance"], "counted")
    messages, ended_sessions = [], []

    def end(_done, _total):
        if not ended_sessions:
            ended_sessions.extend(admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'predictions'"
            ))  # fmt: skip

    folder = export(settings, storage, end, messages.append, rate=account_count)
    assert len(ended_sessions) > 1
    assert "the snapshot was lost" in messages[0]
    check_accounts(folder)


def test_a_session_that_is_ended_before_it_reads_anything_loses_it_too(
    accounts, admin, tmp_path, account_count, no_pause, monkeypatch
):
    database = open_database(accounts._settings.model_copy(update={"connections": 2}))
    settings, storage = settings_for(database, tmp_path, ["balance"], "counted")
    sessions, messages = [], []
    connect = module.PostgresDatabase.connect

    def connect_and_end(database, *arguments):
        session = connect(database, *arguments)
        sessions.append(session)
        if len(sessions) == 3:  # two sessions hold the snapshot; this is the first that reads
            admin.execute("SELECT pg_terminate_backend(%s, 60000)", [session.info.backend_pid])
        return session

    monkeypatch.setattr(module.PostgresDatabase, "connect", connect_and_end)
    with without():
        folder = export(settings, storage, lambda _done, _total: None, messages.append)
    assert re.search("the snapshot was lost: terminating connection .*; starting the export again", messages[0])
    check_accounts(folder)


@pytest.mark.parametrize(
    "source",
    [
        {"table": "accounts"},
        {"table": "some_accounts"},
        {"query": "SELECT * FROM some_accounts JOIN accounts USING (id, balance)"},
    ],
)
def test_a_table_cannot_be_emptied_behind_a_snapshot(accounts, admin, make, account_count, monkeypatch, source):
    """Neither right after it was taken, before any other request to its session, nor later."""

    def try_to_empty():
        admin.execute("SET lock_timeout = '200ms'")
        try:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                admin.execute("TRUNCATE accounts")
        finally:
            admin.execute("RESET lock_timeout")

    class CheckedSnapshot(module.PostgresSnapshot):
        def __init__(self, *arguments):
            try_to_empty()
            super().__init__(*arguments)

    monkeypatch.setattr(module, "PostgresSnapshot", CheckedSnapshot)
    database = make("CREATE VIEW some_accounts AS SELECT id, balance FROM accounts", connections=2, **source)
    with database.snapshot(["id", "balance"]) as snapshot:
        try_to_empty()
        shares = snapshot.shares()
        assert sum(block.count(b"\n") for share in shares for block in share.blocks()) == account_count


def test_null_ids_are_counted_and_nothing_is_left(make, tmp_path):
    database = make("CREATE TABLE t (id text, n int, p int); INSERT INTO t VALUES ('a', 1, 1), (NULL, 1, 1)", table="t")
    settings, storage = settings_for(database, tmp_path, ["n"], "p")
    with pytest.raises(InputError, match="id is NULL in 1 rows of t: every record needs an ID"):
        export(settings, storage, quiet, quiet)
    assert storage.releases() == []


# --- timeouts and errors ---------------------------------------------------------------------------------------------


def test_a_statement_of_the_export_times_out(make, tmp_path):
    query = "SELECT i AS id, 1 AS n, 0 AS p, pg_sleep(0.2) FROM generate_series(1, 100) i"
    database = make(query=query, export_timeout=1)
    settings, storage = settings_for(database, tmp_path, ["n"], "p")
    with pytest.raises(ServiceError, match=r"no answer within 1 s \(database.export_timeout\)"):
        export(settings, storage, quiet, quiet)


@contextmanager
def stopped(admin):
    """Stop the processes of our sessions, as on a host that hangs."""
    pids = [row[0] for row in admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'predictions'")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield len(pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_lookup_times_out_when_the_database_hangs(make, admin):
    database = make("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", table="t", timeout=1)
    with closing(open_reader(database._settings)()) as reader:
        assert reader.records(["1"])
        with stopped(admin) as sessions:
            began = time.monotonic()
            with pytest.raises(ServiceError, match=r"no answer within 1 s \(database.timeout\)"):
                reader.records(["1"])
            assert time.monotonic() - began < 30
        assert sessions == 1


def test_a_lookup_does_not_wait_for_a_lock_for_ever(make, admin, postgresql, schema):
    database = make("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", table="t", timeout=1)
    with closing(open_reader(database._settings)()) as reader, psycopg.connect(postgresql.url) as other_session:
        other_session.execute(f"LOCK TABLE {schema}.t")
        with pytest.raises(ServiceError, match="lock timeout|no answer within 1 s"):
            reader.records(["1"])


def test_lookups_go_on_after_a_lost_session_or_a_changed_table(make, admin):
    database = make("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 2)", table="t")
    with closing(open_reader(database._settings)()) as reader:

        def values():
            return reader.records(["1"])["1"].values

        assert values() == {"id": 1, "n": 2}
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'predictions'")
        assert values() == {"id": 1, "n": 2}
        admin.execute("ALTER TABLE t ADD COLUMN m text DEFAULT 'x'")
        assert values() == {"id": 1, "n": 2, "m": "x"}
        admin.execute("ALTER TABLE t RENAME n TO k")
        assert values() == {"id": 1, "k": 2, "m": "x"}
        admin.execute("ALTER TABLE t ALTER id TYPE text, ALTER k TYPE text USING 'abc'")
        assert values() == {"id": "1", "k": "abc", "m": "x"}
        admin.execute("ALTER TABLE t ALTER id TYPE varchar(3)")
        assert values() == {"id": "1", "k": "abc", "m": "x"}
        admin.execute("ALTER TABLE t ALTER id TYPE varchar(9)")
        admin.execute("INSERT INTO t (id) VALUES ('abcdef')")
        assert reader.records(["abcdef"])
        admin.execute("DELETE FROM t WHERE id = 'abcdef'")
        admin.execute("ALTER TABLE t ALTER id TYPE int USING id::int")
        assert reader.records(["1"]).keys() == {"1"}
        assert reader.records(["1", "3000000000"]).keys() == {"1"}
        admin.execute("ALTER TABLE t ALTER id TYPE bigint")
        admin.execute("INSERT INTO t (id) VALUES (3000000000)")
        assert reader.records(["1", "3000000000"]).keys() == {"1", "3000000000"}
        admin.execute("ALTER TABLE t RENAME id TO key")
        with pytest.raises(InputError, match="no column 'id' in t of"):
            values()


def test_a_reader_is_forgotten_in_a_forked_process(make):
    database = make("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", table="t")
    with closing(open_reader(database._settings)()) as reader:
        assert reader.records(["1"])
        child = os.fork()
        if not child:
            reader.forget()
            code = 0 if reader.records(["1"]) else 1
            reader.close()
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert reader.records(["1"])
