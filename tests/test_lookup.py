"""Lookups on the live cluster: database and HBase together, from threads and forks, and with one of them down."""

import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pandas as pd
import pytest
from conftest import CHECKOUT, make_orders, manifest_of
from thrift_servers import Listener, Relay

from predictions.errors import InputError
from predictions.formats.names import release_table
from predictions.formats.prediction_line import parse_line
from predictions.formats.record_line import split_lines
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.lookup.client import Client
from predictions.lookup.served import MIN_ROWS, POINTER_SECONDS, _by_region
from predictions.settings import load_settings
from predictions.sources.reader import Reader

pytestmark = pytest.mark.cluster

SECONDS = 2.0  # that the database or HBase may take
LOST_SECONDS = 1.0  # timeout of the half that is down, where the other half has its own
SLACK = 1.5
CHILD_SECONDS = 60
FROM_HELL = ["", "x" * 1_000_000, "\0", "a\0b", "../../etc/passwd", "%00", "%2e%2e", "'", '"', "' OR '1'='1", "\udcff"]
FROM_HELL += [
    "1; DROP TABLE orders",
    "\n",
    "a\nb",
    "\t",
    "\r\n",
    "\\N",
    "é" * 20_000,
    "order-001 ",
    "ORDER-001",
    "\u202e",
    "{}",
]


@pytest.fixture(scope="module")
def truth(served):
    """The prediction and probability of each record, from its prediction line."""
    folder = served.storage.release()
    lines = [
        parse_line(line) for path in folder.files("scored") for b in folder.blocks(path) for line in split_lines(b)
    ]
    return {line.row_key.decode().partition(":")[2]: (int(line.prediction), float(line.probability)) for line in lines}


@pytest.fixture
def client(served):
    with Client(served.settings) as client:
        yield client


def with_relay(settings, relay, seconds=SECONDS, **database):
    """Return settings with a relay as Thrift server."""
    hbase = settings.hbase.model_copy(update={"thrift": f"127.0.0.1:{relay.port}", "timeout": seconds})
    return settings.model_copy(update={"hbase": hbase, "database": settings.database.model_copy(update=database)})


def with_database(settings, path, **names):
    """Return settings with another database file."""
    database = settings.database.model_copy(update={"url": f"sqlite:///{path}", **names})
    return settings.model_copy(update={"database": database})


def change_order(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE orders SET amount = 7 WHERE id = 'order-001'")


@pytest.fixture
def relay(served, server):
    with Relay(server) as relay:
        yield relay


def values(answers):
    return {answer.id: (answer.prediction, answer.probability) for answer in answers}


def test_many_ids_keep_their_order_and_get_the_same_answers_as_single_lookups(client, truth):
    ids = [*sorted(truth), "order-007", "no-order", "order-007", 7]
    random.Random(1).shuffle(ids)
    answers = client.get_many(ids)
    assert [answer.id for answer in answers] == list(map(str, ids))
    assert all(
        replace(answer, age=None) == replace(client.get(record_id), age=None)
        for answer, record_id in zip(answers[:50], ids[:50], strict=True)
    )
    assert {name: prediction for name, prediction in values(answers).items() if name in truth} == truth
    statuses = {answer.id: answer.status for answer in answers}
    assert {statuses.pop("no-order"), statuses.pop("7")} == {"missing"}
    assert set(statuses.values()) == {"fresh"}
    assert client.get_many([]) == []


def test_thousands_at_once_go_by_region(served, truth, tmp_path):
    settings = load_settings(served.path)
    with closing(sqlite3.connect(tmp_path / "many.db")) as connection, connection:
        connection.execute("ATTACH ? AS orders", (str(served.path.parent / "orders.db"),))
        connection.execute("CREATE TABLE many AS SELECT * FROM orders.orders")
        connection.executemany("INSERT INTO many (id) VALUES (?)", [(f"new-{n}",) for n in range(4_000)])
        connection.execute("CREATE INDEX by_id ON many (id)")
    ids = [*(f"new-{n}" for n in range(2_500)), *truth]
    with Client(with_database(settings, tmp_path / "many.db", table="many")) as client:
        answers = client.get_many(ids)
    assert [answer.id for answer in answers] == ids
    assert {answer.status for answer in answers[:2_500]} == {"unscored"}
    assert values(answers[2_500:]) == truth


def test_row_keys_are_grouped_by_region():
    points = ["4000", "8000", "c000"]
    many = sorted(b"%04x:%d" % (number * 65_536 // 2_000, number) for number in range(2_000))
    groups = _by_region(many, points)
    assert [key for group in groups for key in group] == many
    assert [group[0][:1] for group in groups] == [b"0", b"4", b"8", b"c"]
    few = many[:: 2_000 // MIN_ROWS]
    assert _by_region(few, points) == [few]
    assert _by_region([], points) == [[]]
    lopsided = [*many[:3], *many[600:]]
    assert [len(group) for group in _by_region(lopsided, points)] == [403, 500, 500]


def test_ids_from_hell_are_answered_and_nothing_happens(client, served):
    with closing(sqlite3.connect(served.path.parent / "orders.db")) as connection:
        before = list(connection.iterdump())
        answers = client.get_many(FROM_HELL)
        assert [(answer.id, answer.status, answer.error) for answer in answers] == [
            (record_id, "missing", None) for record_id in FROM_HELL
        ]
        assert list(connection.iterdump()) == before
    for bad in (None, 1.0, True, b"order-001", ["order-001"], 10**5_000):
        with pytest.raises(InputError, match="is not a record ID"):
            client.get(bad)
    with pytest.raises(InputError, match="not several"):
        client.get_many("order-001")


def test_a_record_with_an_id_that_no_row_key_takes_is_unscored(served, tmp_path):
    long = "y" * 40_000
    make_orders(tmp_path)
    with closing(sqlite3.connect(tmp_path / "orders.db")) as connection, connection:
        connection.executemany("INSERT INTO orders (id) VALUES (?)", [("",), (long,)])
    with Client(with_database(served.settings, tmp_path / "orders.db")) as client:
        assert [answer.status for answer in client.get_many(["", long])] == ["unscored", "unscored"]


# Threads, forks, closing.


def read_at_random(client, truth, seed, turns):
    """Look records up, and return whether all answers were right."""
    chance, ids = random.Random(seed), sorted(truth)
    for _turn in range(turns):
        sample = chance.sample(ids, chance.choice((1, 1, 5)))
        if values(client.get_many(sample)) != {name: truth[name] for name in sample}:
            return False
    return True


def test_any_number_of_threads_get_each_its_own_answers(client, truth):
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda seed: read_at_random(client, truth, seed, 150), range(8)))


def fork(client, truth, seed, turns):
    """Look records up in a forked process, and return its ID; it exits with 0 if all answers were right."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = 0 if read_at_random(client, truth, seed, turns) else 1
        finally:
            os._exit(code)
    return child


def test_a_forked_process_has_connections_of_its_own(served, relay, truth):
    with Client(with_relay(served.settings, relay)) as client:
        assert read_at_random(client, truth, 0, 1)  # so that there is a connection to inherit
        for number in range(3):
            assert exit_code(fork(client, truth, number, 20)) == 0
            assert len(relay.accepted) == 2 + number
        assert read_at_random(client, truth, 4, 20)
        assert len(relay.accepted) == 4  # no fork has closed the first one


def test_a_process_may_be_forked_while_other_threads_look_records_up(client, truth):
    """Locks that they hold at the fork, such as SQLite's own, would stay locked for ever in the child."""
    stop = threading.Event()

    def read_on(seed):
        right = True
        while right and not stop.is_set():
            right = read_at_random(client, truth, seed, 5)
        return right

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(read_on, seed) for seed in range(4)]
        try:
            codes = [exit_code(child) for child in [fork(client, truth, seed, 5) for seed in range(40)]]
        finally:
            stop.set()
        assert all(future.result() for future in running)
    assert codes == [0] * 40


def exit_code(child):
    """Return the exit code of a process; kill it and return None if it hangs."""
    deadline = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_closed_client_closes_its_connections_and_says_so(served, relay, truth):
    client = Client(with_relay(served.settings, relay))
    assert client.get("order-001").status == "fresh"
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("order-001")
    assert len(relay.accepted) == 1


# Requests and their order.


def test_the_pointer_is_asked_for_again_after_half_a_second(served, relay):
    with Client(with_relay(served.settings, relay)) as client:
        for _turn in range(3):
            client.get("order-001")
        pointer, manifest, row = "getRowsWithColumns", "getRowsWithColumns", "getRows"
        assert relay.calls == [pointer, manifest, row, row, row]
        time.sleep(POINTER_SECONDS)
        client.get("order-001")
        assert relay.calls[5:] == [pointer, row]


def test_the_database_is_read_while_hbase_is_at_work(served, relay, monkeypatch):
    read = threading.Event()
    records = Reader.records

    def records_and_note(self, ids):
        result = records(self, ids)
        read.set()
        return result

    monkeypatch.setattr(Reader, "records", records_and_note)
    with Client(with_relay(served.settings, relay)) as client:
        relay.reply = lambda _name, data: data if read.wait(10) else b""  # no reply before the record has been read
        assert client.get("order-001").status == "fresh"  # without a known pointer
        read.clear()
        assert client.get("order-001").status == "fresh"  # with one


def test_a_release_that_was_dropped_is_followed(served, relay, tmp_path):
    """A client's pointer is up to half a second old, and the table of its release may be gone by then."""
    with Connection(served.settings.hbase.server()) as connection:
        releases = Releases(connection, served.name)
        old = releases.pointer()
        table = release_table(served.name, "20200101T000000Z")
        connection.create_table(table, "p")
        key = b"release:20200101T000000Z"
        manifest = connection.row(served.name, b"release:" + old.current.encode())[b"r:manifest"].value
        connection.put(served.name, key, {b"r:manifest": manifest, b"r:state": b"loaded"})
        releases.activate("20200101T000000Z")
        with Client(served.settings) as client:
            assert client.get("order-001").status == "unscored"  # in the empty table
            releases.rollback()
            connection.delete_table(table)
            connection.delete_row(served.name, key)
            answer = client.get("order-001")
        assert (answer.status, answer.release) == ("fresh", old.current)


# One half is down.


@pytest.mark.parametrize("refused", [True, False])
def test_without_hbase_the_record_still_comes_in_time(served, refused):
    listener = Listener(lambda _client: time.sleep(10 * SECONDS))
    if not refused:
        listener.start()
    with Client(with_relay(served.settings, listener, LOST_SECONDS)) as client:
        started = time.monotonic()
        answer = client.get("order-001")
        assert time.monotonic() - started < LOST_SECONDS + SLACK
    assert (answer.status, answer.unavailable) == ("unavailable", ["hbase"])
    assert answer.record["id"] == "order-001"
    assert answer.prediction is None
    assert "Thrift server" in answer.error


def test_without_the_database_the_prediction_still_comes_in_time(served, relay, truth, tmp_path):
    path = make_orders(tmp_path) / "orders.db"
    settings = with_relay(served.settings, relay, url=f"sqlite:///{path}", timeout=SECONDS)
    with Client(settings) as client, closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        for _turn in range(2):  # without the pointer, and with it
            started = time.monotonic()
            (answer,) = client.get_many(["order-001"])
            assert time.monotonic() - started < SECONDS + SLACK
            assert (answer.status, answer.unavailable, answer.record) == ("unavailable", ["database"], None)
            assert values([answer]) == {"order-001": truth["order-001"]}
            assert answer.release == served.storage.release().release
        writer.execute("ROLLBACK")
        assert client.get("order-001").status == "fresh"


def test_hbase_has_its_own_timeout_after_a_slow_database(served, relay, monkeypatch):
    """Look up over several connections; the pointer was requested before the database was read."""
    records = Reader.records

    def slow(self, ids):
        time.sleep(1.2 * SECONDS)  # longer than HBase may take
        return records(self, ids)

    monkeypatch.setattr(Reader, "records", slow)
    monkeypatch.setattr("predictions.lookup.served.GRACE_SECONDS", CHILD_SECONDS)  # a busy machine may need more
    with Client(with_relay(served.settings, relay)) as client:
        answers = client.get_many([f"no-order-{number}" for number in range(1_000)])
        assert {(answer.status, answer.release) for answer in answers} == {
            ("missing", served.storage.release().release)
        }
        assert relay.calls.count("getRows") > 1


@pytest.mark.parametrize("source", ["table", "query"])
def test_a_locked_database_is_unavailable_whatever_the_source(served, relay, tmp_path, source):
    path = make_orders(tmp_path) / "orders.db"
    names = {"table": "orders"} if source == "table" else {"table": None, "query": "SELECT * FROM orders"}
    settings = with_relay(served.settings, relay, url=f"sqlite:///{path}", timeout=0.3, **names)
    with Client(settings) as client, closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert client.get("order-001").unavailable == ["database"]
        assert client.unavailable().keys() == {"database"}
        writer.execute("ROLLBACK")
        assert client.get("order-001").status == "fresh"
        assert client.unavailable() == {}


def test_a_table_that_is_gone_is_an_error_whatever_it_is_called(served, relay, tmp_path):
    path = tmp_path / "blocked.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE interrupted_or_locked (id TEXT PRIMARY KEY)")
        settings = with_relay(served.settings, relay, url=f"sqlite:///{path}", table="interrupted_or_locked")
        with Client(settings) as client:
            assert client.get("order-001").status == "missing"
            connection.execute("DROP TABLE interrupted_or_locked")
            with pytest.raises(InputError, match="no such table"):
                client.get("order-001")


def test_a_read_that_takes_too_long_is_given_up(served, relay):
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT o.* FROM orders o, n"
    with Client(with_relay(served.settings, relay, table=None, query=query, timeout=0.5)) as client:
        started = time.monotonic()
        answer = client.get("order-001")
        assert time.monotonic() - started < 0.5 + SLACK
    assert (answer.status, answer.unavailable) == ("unavailable", ["database"])
    assert "0.5 s (database.timeout)" in answer.error


def test_a_database_file_that_was_replaced_is_read_anew(served, tmp_path):
    path = make_orders(tmp_path) / "orders.db"
    with Client(with_database(served.settings, path)) as client:
        assert client.get("order-001").status == "fresh"
        other = tmp_path / "other.db"
        shutil.copy(path, other)
        change_order(other)
        os.replace(other, path)
        answer = client.get("order-001")
        assert (answer.status, answer.record["amount"]) == ("changed", 7)


# Age, model, online scores.


def test_an_answer_says_which_model_made_it_and_how_old_it_is(client, served):
    answer = client.get("order-001")
    manifest = manifest_of(served.storage.release())
    assert answer.model == manifest.model.sha256
    assert 0 <= answer.age < 24 * 3600
    with Client(served.settings, max_age=0.5) as strict:
        time.sleep(1)
        assert strict.get("order-001").status == "expired"
        assert strict.get("no-order").status == "missing"


def test_online_predictions_equal_those_of_the_job(served, truth, tmp_path):
    """Score new records that equal a scored record, and records that were changed to equal another one."""
    path = make_orders(tmp_path) / "orders.db"
    copies = {f"new-{number:03}": f"order-{number:03}" for number in range(100)}
    copies |= {f"order-{number}": f"order-{number + 50}" for number in range(100, 150)}
    with closing(sqlite3.connect(path)) as connection, connection:
        for name, original in copies.items():
            features = connection.execute(
                "SELECT country, amount, items FROM orders WHERE id = ?", (original,)
            ).fetchone()
            connection.execute("DELETE FROM orders WHERE id = ?", (name,))
            connection.execute("INSERT INTO orders (id, country, amount, items) VALUES (?, ?, ?, ?)", (name, *features))
    settings = with_database(served.settings, path)
    ids = [*copies, *sorted(set(truth) - set(copies)), "no-order"]
    with Client(settings) as plain_client, Client(settings, model=True) as client:
        statuses = [answer.status for answer in plain_client.get_many(ids)]
        answers = client.get_many(ids)
    assert statuses == ["unscored"] * 100 + ["changed"] * 50 + ["fresh"] * 350 + ["missing"]
    assert [answer.status for answer in answers] == ["fresh"] * 500 + ["missing"]
    assert [answer.source for answer in answers] == ["online"] * 150 + [None] * 351
    assert values(answers[:150]) == {name: truth[original] for name, original in copies.items()}
    assert values(answers[150:500]) == {name: truth[name] for name in ids[150:500]}


ONLINE = """
import sys
from predictions import Client
with Client(sys.argv[1], model=True) as client:
    answer = client.get("order-001")
print(answer.status, answer.source, *sorted({"pandas", "scipy", "sklearn", "skops"} & set(sys.modules)))
"""


def test_a_compiled_model_scores_online_without_scikit_learn(served, tmp_path):
    change_order(make_orders(tmp_path) / "orders.db")
    database = f"sqlite:///{tmp_path / 'orders.db'}"
    command = [sys.executable, "-c", ONLINE, str(served.path)]
    process = served.start(command, tmp_path, PYTHONPATH=str(CHECKOUT), PREDICTIONS_DATABASE_URL=database)
    stdout, stderr = process.communicate(timeout=120)
    assert (stdout, stderr) == ("fresh online\n", "")


def test_without_its_model_the_answer_stays_as_it_is(served, tmp_path):
    change_order(make_orders(tmp_path) / "orders.db")
    with Client(with_database(served.settings, tmp_path / "orders.db"), model=str(tmp_path / "empty")) as client:
        answer = client.get("order-001")
        assert (answer.status, answer.source) == ("changed", None)
        assert "cannot be scored now" in answer.error
        assert client.get("order-002").error is None


def test_a_storage_that_hangs_delays_lookups_only_briefly(served, tmp_path, monkeypatch):
    monkeypatch.setattr("predictions.lookup.online.LOAD_SECONDS", LOST_SECONDS)
    change_order(make_orders(tmp_path) / "orders.db")
    settings = with_database(served.settings, tmp_path / "orders.db")
    with (
        Listener(lambda _client: time.sleep(20)) as silent,
        Client(settings, model=f"webhdfs://127.0.0.1:{silent.port}/predictions") as client,
    ):
        for bound in (LOST_SECONDS, 0.0):  # the second lookup does not wait for the storage
            started = time.monotonic()
            answer = client.get("order-001")
            assert time.monotonic() - started < bound + SLACK
            assert (answer.status, "was not loaded within" in answer.error) == ("changed", True)
        assert len(silent.accepted) == 1
        assert client.get("order-002").status == "fresh"


def test_a_model_that_was_missing_is_loaded_later(served, tmp_path, monkeypatch):
    monkeypatch.setattr("predictions.lookup.online.RETRY_SECONDS", 0.2)
    change_order(make_orders(tmp_path) / "orders.db")
    folder = served.storage.release()
    with Client(with_database(served.settings, tmp_path / "orders.db"), model=str(tmp_path / "later")) as client:
        assert client.get("order-001").status == "changed"
        copied = tmp_path / "later" / served.name / folder.release
        (copied / "model").mkdir(parents=True)
        for name in ("manifest.json", *(f"model/{name}" for name in folder.model.files)):
            (copied / name).write_bytes(folder.read(name))
        time.sleep(0.3)
        answer = client.get("order-001")
        assert (answer.status, answer.source, answer.error) == ("fresh", "online", None)


# pandas


def test_predictions_join_a_data_frame(client, truth):
    frame = pd.DataFrame({"id": ["order-003", "no-order", "order-001"], "x": [1, 2, 3]}, index=[5, 5, 7])
    joined = client.join(frame)
    assert list(joined.index) == [5, 5, 7]
    assert list(joined["x"]) == [1, 2, 3]
    assert list(joined["status"]) == ["fresh", "missing", "fresh"]
    assert joined["prediction"].iloc[2] == truth["order-001"][0]
    assert pd.isna(joined["prediction"].iloc[1])
    types = {name: str(kind) for name, kind in joined.dtypes.items() if name not in frame}
    assert types == {
        **dict.fromkeys(("status", "release", "scored", "source", "error"), "string"),
        **{"prediction": "Int64", "probability": "Float64", "age": "Int64"},
    }
    assert list(client.join(frame.rename(columns={"id": "key"}), on="key")["status"]) == list(joined["status"])
    assert list(client.join(frame.set_index("id"))["status"]) == list(joined["status"])
    assert len(client.join(frame.iloc[:0])) == 0
    for bad_frame, message in (
        (frame.rename(columns={"id": "key"}), "no column 'id'"),
        (frame.assign(release=1), "release already"),
        (frame.assign(id=1.5), "1.5 is not a record ID"),
        (frame[["id", "id"]], "several columns 'id'"),
    ):
        with pytest.raises(InputError, match=message):
            client.join(bad_frame)
