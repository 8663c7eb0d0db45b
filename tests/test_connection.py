"""The connection to HBase: its answers and errors, where plain HappyBase gives wrong rows or waits for ever."""

import logging
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, count

import happybase
import pytest
from conftest import CHECKOUT
from thrift_servers import MODES, Listener, Relay, thrift_servers

import predictions.hbase.connection
import predictions.hbase.transport
from predictions.errors import InputError, ServiceError
from predictions.hbase.connection import Connection, RejectedError
from predictions.hbase.rows import Cell, Row
from predictions.hbase.server import Server

on_cluster = pytest.mark.cluster

ROWS, REQUESTS = 1_000, 10_000
COLUMN = b"f:value"
EXIT_SECONDS = 1.0  # that a process may take to exit after its last output, on a busy machine


def key(number):
    return b"k%05d" % number


@pytest.fixture(scope="module")
def table(server):
    """A table with numbered rows whose values are their keys; tests that write use other rows."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    with Connection(server) as connection:
        connection.create_table(name, "f")
        connection.put_rows(name, [(key(number), {COLUMN: key(number)}) for number in range(ROWS)], 1)
    yield name
    with Connection(server) as connection:
        connection.delete_table(name)


@pytest.fixture(scope="module")
def servers(cluster, tmp_path_factory):
    with thrift_servers(cluster.config, tmp_path_factory.mktemp("thrift")) as servers:
        yield servers


@pytest.fixture
def relay(server):
    with Relay(server) as relay:
        yield relay


@pytest.fixture
def reasons():
    """The reasons for which the connection waited."""
    return []


@pytest.fixture
def connection(server, relay, reasons):
    with Connection(replace(server, port=relay.port), reasons.append) as connection:
        yield connection


def lookups(connection, table, numbers):
    """Look rows up and return how many answers were right, how many wrong, and how many requests failed."""
    counts = [0, 0, 0]
    for number in numbers:
        try:
            counts[connection.row(table, key(number)) != {COLUMN: Cell(key(number), 1)}] += 1
        except ServiceError:
            counts[2] += 1
    return counts


def first(number, change):
    """Return a reply function that changes only the first replies."""
    left = iter(range(number))
    return lambda _name, data: data if next(left, None) is None else change(data)


def gives_up(server, request=lambda connection: connection.row("table", b"key")):
    """Make a request that must fail within the timeout; return the error and the reasons to wait."""
    reasons = []
    with Connection(server, reasons.append) as connection:
        started = time.monotonic()
        with pytest.raises(ServiceError) as raised:
            request(connection)
        assert time.monotonic() - started < server.timeout + max(0.1 * server.timeout, 0.2)
    # A refusal must not exit with 4, the code for an unreachable service: schedulers then try again.
    assert raised.value.exit_code == (3 if isinstance(raised.value, RejectedError) else 4)
    assert server.address in str(raised.value)
    assert "\n" not in str(raised.value)
    return raised.value, reasons


# Replies that arrive after their request was given up.


def abandon(relay, error, look_up):
    """Look a row up, and hold the reply back until the lookup has failed by a timeout or an interrupt."""
    ended = threading.Event()

    def hold_back(data):
        if error is KeyboardInterrupt:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return data if ended.wait(10) else b""

    relay.reply = first(1, hold_back)
    # Processes in the background ignore the signal by default.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error):
            look_up()
    finally:
        signal.signal(signal.SIGINT, handler)
    ended.set()


@on_cluster
@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt])
def test_plain_happybase_answers_with_the_row_of_a_request_that_was_given_up(table, relay, error):
    plain = happybase.Connection("127.0.0.1", relay.port, timeout=1000).table(table)
    abandon(relay, error, lambda: plain.row(key(1)))
    assert plain.row(key(2)) == {COLUMN: key(1)}  # HappyBase is wrong: this shows that the next tests are needed


@on_cluster
def test_after_an_interrupt_the_next_answer_is_right_and_comes_by_a_new_connection(table, relay, connection, reasons):
    assert lookups(connection, table, [0]) == [1, 0, 0]  # otherwise the connection would count as idle
    abandon(relay, KeyboardInterrupt, lambda: connection.row(table, key(1)))
    assert lookups(connection, table, [2]) == [1, 0, 0]
    assert (len(relay.accepted), reasons) == (2, [])


@on_cluster
def test_no_answer_of_ten_thousand_is_another_requests_though_many_come_late(table, relay, server):
    chance = random.Random(1)
    late = set(chain.from_iterable(range(start, start + 3) for start in chance.sample(range(REQUESTS), 15)))
    replies = count()

    def reply(_name, data):
        if next(replies) in late:
            time.sleep(chance.uniform(0.025, 0.2))
        return data

    relay.reply = reply
    with Connection(replace(server, port=relay.port, timeout=0.1)) as connection:
        right, wrong, failed = lookups(connection, table, (chance.randrange(ROWS) for _ in range(REQUESTS)))
    assert wrong == 0
    assert right > 0.9 * REQUESTS
    assert failed > 0
    assert len(relay.accepted) > 15


@on_cluster
def test_a_reply_that_bears_another_requests_number_is_not_taken(table, relay, connection, reasons):
    relay.reply = first(1, lambda data: data + data)
    assert lookups(connection, table, [1, 2]) == [2, 0, 0]
    assert reasons == ["reply 1 (getRows) arrived for request 2"]


# A connection shared by threads or processes.


@on_cluster
def test_plain_happybase_mixes_up_the_rows_of_two_threads(table, servers):
    # Not the cluster's own server: it would have to read requests that two threads write into each other.
    plain = happybase.Connection("127.0.0.1", servers["framed"].port, transport="framed", timeout=2000).table(table)

    def faults(numbers):
        try:
            return [number for number in numbers if plain.row(key(number)) != {COLUMN: key(number)}]
        except Exception as error:  # thriftpy2 may raise anything
            return [error]

    with ThreadPoolExecutor(2) as pool:
        assert any(pool.map(faults, [range(200), range(200, 400)]))


@on_cluster
def test_no_answer_of_ten_thousand_is_another_threads(table, server):
    def work(index):
        with Connection(server) as connection:
            return lookups(connection, table, (number % ROWS for number in range(index, REQUESTS, 4)))

    with ThreadPoolExecutor(4) as pool:
        assert list(map(sum, zip(*pool.map(work, range(4)), strict=True))) == [REQUESTS, 0, 0]


@on_cluster
def test_another_thread_is_refused(table, connection):
    assert lookups(connection, table, [1]) == [1, 0, 0]
    with ThreadPoolExecutor(1) as pool:
        for request in (lambda: connection.row(table, key(1)), lambda: next(connection.scan(table, b"", b""))):
            with pytest.raises(RuntimeError, match="belongs to the thread"):
                pool.submit(request).result()


FORK = """
import os, sys
from predictions.hbase.connection import Connection
from predictions.hbase.server import Server

connection = Connection(Server("127.0.0.1", int(sys.argv[1])))
row = connection.row(sys.argv[2], b"k00001")
if os.fork() == 0:
    try:
        connection.row(sys.argv[2], b"k00001")
    except RuntimeError as error:
        print(error)
    sys.exit()  # and its copy of the connection is discarded
os.wait()
print(connection.row(sys.argv[2], b"k00001") == row)
"""


@on_cluster
def test_a_forked_process_is_refused_and_its_end_leaves_the_parents_connection_open(table, relay):
    command = [sys.executable, "-c", FORK, str(relay.port), table]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    refused, right = result.stdout.splitlines()
    assert "belongs to the thread and the process" in refused
    assert (right, len(relay.accepted), len(relay.calls)) == ("True", 1, 2)


# Servers that are unreachable or do not answer.


def silent(_client):
    """Neither read nor write; hang up after 10 s, so that a test without a deadline fails instead of hanging."""
    time.sleep(10)


def trickle(client):
    """Send the head of a reply with a name of a million bytes, then now and then a byte of it."""
    client.sendall(b"\x80\x01\0\x02\0\x0f\x42\x40")
    for _ in range(50):
        time.sleep(0.2)
        client.sendall(b"x")


def read_row(connection):
    connection.row("table", b"key")


def put_much(connection):
    connection.put_rows("table", [(b"key", {COLUMN: bytes(1 << 25)})], 1)


@pytest.mark.parametrize(
    ("answer", "request_", "encrypted"),
    [(silent, read_row, False), (silent, put_much, False), (silent, read_row, True), (trickle, read_row, False)],
)
def test_a_server_that_does_not_answer_is_given_up_in_time(answer, request_, encrypted):
    with Listener(answer) as listener:
        error, reasons = gives_up(Server("127.0.0.1", listener.port, timeout=2, tls=encrypted), request_)
    assert "2 s at most (hbase.timeout)" in str(error)
    assert reasons  # it was tried again


@pytest.mark.parametrize("request_", [read_row, put_much])
def test_signals_do_not_move_the_deadline(request_):
    """They interrupt system calls, which begin again."""
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with Listener(silent) as listener:
            gives_up(Server("127.0.0.1", listener.port, timeout=2), request_)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_commands_give_a_server_that_does_not_answer_up_in_time(trained, orders, predictions):
    shutil.copytree(trained, orders / "storage" / "orders" / trained.name)
    assert predictions("score", "--runner", "local").returncode == 0
    for arguments, setting in ((["load"], "load_timeout"), (["get", "order-001"], "timeout")):
        with Listener(trickle) as listener:
            address = f"127.0.0.1:{listener.port}"
            variables = {"PREDICTIONS_HBASE_THRIFT": address, f"PREDICTIONS_HBASE_{setting.upper()}": "3"}
            result = predictions(*arguments, **variables)
            seconds = time.monotonic() - listener.accepted[0]
        output = result.stdout + result.stderr
        assert (result.returncode, address in output, f"hbase.{setting}" in output) == (4, True, True), output
        assert seconds < 3.3 + EXIT_SECONDS


class Clock:
    """A clock that advances only by sleeping, however busy the machine is."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_refused_connection_is_tried_again_until_patience_is_used_up(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "predictions.hbase")
    for _turn in range(100):  # since the waits are random
        clock = Clock()
        for module in (predictions.hbase.connection, predictions.hbase.transport):
            monkeypatch.setattr(module, "time", clock)
        server = Server("127.0.0.1", Listener().port, timeout=2, timeout_setting="hbase.setting")
        caplog.clear()
        error, reasons = gives_up(server)
        assert "Connection refused" in str(error)
        assert "2 s at most (hbase.setting)" in str(error)
        assert set(reasons) == {"[Errno 111] Connection refused"}
        assert 0.8 * 2 < clock.now <= 2
        assert {record.levelno for record in caplog.records} == {logging.INFO}
        line = f"HBase's Thrift server at {server.address}: {reasons[0]}; trying again"
        assert caplog.messages == [line] * len(reasons)


def test_an_unknown_host_is_named():
    error, _reasons = gives_up(Server("no-such-host.invalid", 9090, timeout=1))
    assert "no-such-host.invalid:9090" in str(error)


@pytest.mark.parametrize("transport", ["buffered", "framed"])
@pytest.mark.parametrize("protocol", ["binary", "compact"])
@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\0\x02\x02\x46"], ids=["web", "tls"]
)
def test_a_server_that_does_not_speak_thrift_is_reported_as_unavailable(transport, protocol, reply):
    def answer(client):
        client.recv(1 << 16)
        client.sendall(reply)

    with Listener(answer) as listener:
        gives_up(Server("127.0.0.1", listener.port, transport, protocol, timeout=0.5))


# Connections that end.


@on_cluster
def test_an_idle_connection_is_opened_anew_before_the_server_closes_it(monkeypatch, table, relay, connection, reasons):
    monkeypatch.setattr(predictions.hbase.connection, "IDLE_SECONDS", 0.5)
    assert lookups(connection, table, [1, 2]) == [2, 0, 0]
    assert len(relay.accepted) == 1
    time.sleep(0.6)
    assert lookups(connection, table, [3]) == [1, 0, 0]
    assert (len(relay.accepted), reasons) == (2, [])


@on_cluster
def test_requests_that_are_safe_to_repeat_are_repeated(table, relay, connection, reasons):
    rows = [(b"repeated-%d" % number, {COLUMN: b"%d" % number}) for number in range(10)]
    relay.reply = first(2, lambda _data: b"")
    connection.put_rows(table, rows, 5)
    relay.reply = first(2, lambda _data: b"")
    assert connection.row(table, b"repeated-7") == {COLUMN: Cell(b"7", 5)}
    assert relay.calls == ["mutateRowsTs"] * 3 + ["getRows"] * 3
    assert (len(reasons), len(relay.accepted)) == (4, 5)
    [page] = connection.scan(table, b"repeated-", b"repeated.")
    assert [row.key for row in page] == [row for row, _cells in rows]


@on_cluster
def test_check_and_put_is_not_sent_again_where_its_answer_was_lost(table, server, relay):
    relay.reply = first(1, lambda _data: b"")
    relayed = replace(server, port=relay.port)
    error, reasons = gives_up(
        relayed, lambda relayed_connection: relayed_connection.check_and_put(table, b"claim", COLUMN, None, b"mine")
    )
    assert (relay.calls, reasons, isinstance(error, RejectedError)) == (["checkAndPut"], [], False)
    with Connection(server) as connection:
        # The request took effect: a second one would report a failure.
        assert connection.row(table, b"claim")[COLUMN].value == b"mine"
        assert not connection.check_and_put(table, b"claim", COLUMN, None, b"another's")
        assert connection.check_and_put(table, b"claim", COLUMN, b"mine", b"still mine")


@on_cluster
def test_check_and_put_waits_for_a_server_that_is_not_up_yet(table, server, reasons):
    relay = Relay(server)
    threading.Timer(0.5, relay.start).start()
    with Connection(replace(server, port=relay.port), reasons.append) as connection:
        assert connection.check_and_put(table, b"early", COLUMN, None, b"mine")
    relay.__exit__()
    assert relay.calls == ["checkAndPut"]
    assert set(reasons) == {"[Errno 111] Connection refused"}


@on_cluster
@pytest.mark.parametrize(
    ("call", "number"), [("scannerOpenWithScan", 0), ("scannerGetList", 0), ("scannerGetList", 2), ("scannerClose", 0)]
)
def test_a_scan_goes_on_behind_the_last_row_where_its_connection_was_cut(table, relay, connection, call, number):
    numbers = count()
    relay.reply = lambda name, data: data[: len(data) // 2] if name == call and next(numbers) == number else data
    pages = list(connection.scan(table, key(10), key(900), page_rows=300))
    assert [row.key for page in pages for row in page] == list(map(key, range(10, 900)))
    assert next(numbers) > number  # the connection was cut


# Requests that HBase refuses.


@on_cluster
@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (
            lambda connection, table: connection.put_rows(table, [(b"a", {COLUMN: bytes(11 << 20)})], 1),
            "KeyValue size too large",
        ),
        (
            lambda connection, table: connection.put_rows(table, [(b"a", {b"g:value": b"1"})], 1),
            "NoSuchColumnFamilyException",
        ),
        (lambda connection, table: connection.row(table, b"a", [b"g:value"]), "NoSuchColumnFamilyException"),
        (lambda connection, _table: connection.put_rows("no_such_table", [(b"a", {COLUMN: b"1"})], 1), "no_such_table"),
        (lambda connection, _table: connection.row("no_such_table", b"a"), "TableNotFoundException: no_such_table"),
    ],
    ids=["large-cell", "family-to-write", "family-to-read", "table-to-write", "table-to-read"],
)
def test_a_refusal_is_reported_at_once(table, server, relay, request_, reason):
    error, reasons = gives_up(replace(server, port=relay.port), lambda connection: request_(connection, table))
    assert isinstance(error, RejectedError)
    assert reason in error.reason
    assert not re.search(r"\b(org|java)\.", error.reason)
    assert (len(relay.calls), reasons) == (1, [])


# Other transports and protocols, TLS.


@on_cluster
@pytest.mark.parametrize("mode", MODES)
def test_every_request_in_every_mode(table, servers, mode):
    rows = [(f"{mode} {number}".encode(), {COLUMN: b"\0\xff", b"f:empty": b""}) for number in range(10)]
    expected = {COLUMN: Cell(b"\0\xff", 1 << 40), b"f:empty": Cell(b"", 1 << 40)}
    with Connection(servers[mode]) as connection:
        assert lookups(connection, table, range(100)) == [100, 0, 0]
        assert table.encode() in connection.tables()
        assert [region.start for region in connection.regions(table)] == [b""]
        connection.put_rows(table, rows, 1 << 40)
        pages = list(connection.scan(table, f"{mode} ".encode(), f"{mode}!".encode(), page_rows=7))
        assert [(row.key, row.cells) for page in pages for row in page] == [(row, expected) for row, _cells in rows]
        assert not connection.check_and_put(table, rows[0][0], COLUMN, None, b"1")
        assert connection.check_and_put(table, rows[0][0], b"f:empty", b"", b"1")
        connection.delete_row(table, rows[0][0])
        assert connection.row(table, rows[0][0]) == {}


@on_cluster
@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_mode_is_given_up_in_time(servers, mode):
    modes = [
        replace(servers[mode], transport=t, protocol=p) for t in ("buffered", "framed") for p in ("binary", "compact")
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(gives_up, [replace(wrong, timeout=0.5) for wrong in modes if wrong != servers[mode]]))


@pytest.fixture(scope="module")
def tls(server, tmp_path_factory):
    """A server behind a TLS proxy, such as stunnel: HBase's own server has TLS only for Thrift over HTTP."""
    folder = tmp_path_factory.mktemp("tls")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names)
    subprocess.run([*command, "-keyout", "key.pem", "-out", "ca.pem"], cwd=folder, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    with Relay(server, context) as relay:
        yield replace(server, port=relay.port, tls=True, ca=str(folder / "ca.pem"))


@on_cluster
def test_answers_that_are_encrypted(table, tls):
    for host in ("localhost", "127.0.0.1"):
        with Connection(replace(tls, host=host)) as connection:
            assert lookups(connection, table, range(100)) == [100, 0, 0]


@on_cluster
def test_an_untrusted_certificate_is_refused_at_once(tls):
    error, reasons = gives_up(replace(tls, ca=None))
    assert ("certificate verify failed" in str(error), reasons) == (True, [])


@on_cluster
def test_plain_and_encrypted_do_not_meet(tls, servers):
    gives_up(replace(tls, tls=False, timeout=0.5))
    gives_up(replace(servers["compact"], tls=True, ca=tls.ca, timeout=0.5))


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_a_file_without_certificates_is_named_at_once(tmp_path, reasons, content):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match=f"{path}.*hbase.ca"):
        Connection(Server("127.0.0.1", Listener().port, tls=True, ca=str(path)), reasons.append).tables()
    assert reasons == []


# Writing.


@on_cluster
def test_rows_that_are_put_twice_with_one_timestamp_are_there_once(table, server):
    with Connection(server) as connection:
        for _ in range(2):
            connection.put_rows(table, [(b"twice", {COLUMN: b"1"}), (b"twice more", {COLUMN: b"2"})], 7)
        [page] = connection.scan(table, b"twice", b"twicf")
    assert page == [Row(b"twice", {COLUMN: Cell(b"1", 7)}), Row(b"twice more", {COLUMN: Cell(b"2", 7)})]
    plain = happybase.Connection(port=server.port, timeout=5000)
    assert plain.table(table).cells(b"twice", COLUMN) == [b"1"]  # though the table keeps up to three versions


@on_cluster
def test_a_row_is_removed_and_to_remove_it_again_is_no_error(table, server):
    with Connection(server) as connection:
        connection.put(table, b"removed", {COLUMN: b"1", b"f:other": b"2"})
        assert set(connection.row(table, b"removed")) == {COLUMN, b"f:other"}
        assert set(connection.row(table, b"removed", [COLUMN])) == {COLUMN}
        for _ in range(2):
            connection.delete_row(table, b"removed")
            assert connection.row(table, b"removed") == {}


@on_cluster
def test_a_table_has_regions_and_is_not_made_twice(table, server):
    with Connection(server) as connection:
        connection.create_table(table, "f")
        assert lookups(connection, table, [1]) == [1, 0, 0]
        [region] = connection.regions(table)
        assert (region.start, re.fullmatch(r"[\w.-]+:\d+", region.server) is not None) == (b"", True)
        assert connection.regions("no_such_table") == []
