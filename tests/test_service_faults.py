"""The service under load on the second cluster, while releases switch and HBase's servers are killed.

Each answer is compared with what stands in the database and in the table of the release that it names. `unavailable` is
an answer only while something is down, and for some seconds after a plain HappyBase connection can read all regions.
The suite waits no longer between two kills than it takes to see that, and its connections rest between two requests;
--full has a minute of load in all, as much as there can be.
"""

import http.client
import json
import random
import sqlite3
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field

import happybase
import pytest
from conftest import Project, make_orders
from second import REGION_SERVERS
from services import service
from thriftpy2.thrift import TException

from predictions.errors import ServiceError
from predictions.formats.names import release_table
from predictions.formats.prediction_line import texts
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases

pytestmark = pytest.mark.cluster

CONNECTIONS = 50
FULL_SECONDS = 60
SWITCH_SECONDS = 0.5
SWITCHES = 10  # at least
REST_SECONDS = 0.1  # of a connection between two requests, so that they take no more than half of a core
RECOVERY_SECONDS = 5.0  # in which the service must follow what is back
KILLS = (("thrift",), ("thrift",), tuple(f"regionserver-{index}" for index in range(REGION_SERVERS)))
BETWEEN_SECONDS = 7.0  # of load after each return, more than it may take to recover
FULL_BETWEEN_SECONDS = 10.0
PROBE_SECONDS = 0.2
DEADLINE = 300


@pytest.fixture(scope="module")
def made(second, tmp_path_factory):
    """The orders with two releases, of which every other prediction differs; the second one is current."""
    second.bring_back()
    folder = tmp_path_factory.mktemp("orders")
    made = Project(folder, second, (make_orders(folder) / "predictions.toml").read_text())
    for change in (None, "UPDATE orders SET amount = 501 - amount WHERE items % 2"):
        if change:
            with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
                connection.execute(change)
        for stage in ("export", "train", "score --runner local", "load --via puts", "activate --force again"):
            made.succeed(*stage.split())
    return made


@dataclass
class Watch:
    """What happened, by the monotonic clock."""

    outages: list[list[float]] = field(default_factory=list)  # when each began and when it was over
    wrong: list = field(default_factory=list)
    unavailable: list[tuple[float, float]] = field(default_factory=list)  # when each was asked for, and answered
    answers: int = 0
    switches: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def is_excused(self, asked, answered):
        return any(answered >= began and asked <= over + RECOVERY_SECONDS for began, over in self.outages)


def read_truth(made, database):
    """Each release's predictions by ID, and the records by ID."""
    with Connection(made.settings.hbase.server()) as connection:
        found = {}
        for release in made.storage.releases():
            rows = [row for page in connection.scan(release_table(made.name, release), b"", b"") for row in page]
            cells = {
                row.key.decode().partition(":")[2]: texts({c: v.value for c, v in row.cells.items()}) for row in rows
            }
            found[release] = {name: (int(of["prediction"]), float(of["probability"])) for name, of in cells.items()}
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return found, {row["id"]: dict(row) for row in connection.execute("SELECT * FROM orders")}


def ask(url, seed, rest, truth, records, watch):
    """Look records up over one connection, one or twenty at a time, and judge each answer."""
    chance, ids = random.Random(seed), sorted(records)
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
        while not watch.stop.wait(rest):
            wanted = chance.sample(ids, chance.choice((1, 1, 1, 20)))
            body, sent = json.dumps({"ids": wanted}), time.monotonic()
            connection.request("POST", "/records", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            told = json.loads(response.read())
            if response.status != 200 or [answer["id"] for answer in told["answers"]] != wanted:
                watch.wrong.append((response.status, told))
                continue
            for answer in told["answers"]:
                judge(answer, sent, truth, records, watch)


def ask_on(watch, *arguments):
    """Ask until the end; whatever else ends it is wrong."""
    try:
        ask(*arguments, watch)
    except Exception as error:
        watch.wrong.append(repr(error))


def judge(answer, sent, truth, records, watch):
    watch.answers += 1
    name = answer["id"]
    if answer.get("record") != records[name]:
        watch.wrong.append(answer)
    elif answer["status"] == "unavailable":
        watch.unavailable.append((sent, time.monotonic()))
        if answer["unavailable"] != ["hbase"] or "prediction" in answer:
            watch.wrong.append(answer)
    elif (answer.get("prediction"), answer.get("probability")) != truth.get(answer.get("release"), {}).get(name):
        watch.wrong.append(answer)


def switch(made, releases, watch):
    """Make the one release current and the other one, in turn."""
    with Connection(made.settings.hbase.server()) as connection:
        pointers = Releases(connection, made.name)
        while not watch.stop.wait(SWITCH_SECONDS):
            with suppress(ServiceError):
                pointers.activate(releases[watch.switches % 2], force=True)
                watch.switches += 1


def is_back(port, tables):
    """Whether a plain connection reads rows of all regions."""
    try:
        with closing(happybase.Connection("127.0.0.1", port, timeout=1_000)) as plain:
            return all(len(plain.table(table).rows(keys)) == len(keys) for table, keys in tables.items())
    except (OSError, TException):
        return False


def test_fifty_connections_while_releases_switch_and_servers_die(made, second, tmp_path, full):
    between, rest = (FULL_BETWEEN_SECONDS, 0.0) if full else (BETWEEN_SECONDS, REST_SECONDS)
    truth, records = read_truth(made, made.path.parent / "orders.db")
    releases = sorted(truth)
    assert sum(truth[releases[0]][name] != truth[releases[1]][name] for name in records) > len(records) / 4
    with Connection(made.settings.hbase.server()) as connection:
        tables = {}
        for release in releases:
            table = release_table(made.name, release)
            starts = [region.start for region in connection.regions(table)]
            tables[table] = [next(connection.scan(table, start, b"", page_rows=1))[0].key for start in starts]
        tables[made.name] = [b"pointer"]
    watch = Watch()
    with service(made.path, tmp_path, PREDICTIONS_HBASE_TIMEOUT="10") as running:
        threads = [
            threading.Thread(target=ask_on, args=(watch, running.url, seed, rest, truth, records))
            for seed in range(CONNECTIONS)
        ]
        threads.append(threading.Thread(target=switch, args=(made, releases, watch)))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)  # of load with nothing down
            for names in KILLS:
                outage = [time.monotonic(), float("inf")]
                watch.outages.append(outage)
                for name in names:
                    second.kill(name)
                second.bring_back()
                while not is_back(second.config.port("thrift"), tables):
                    assert time.monotonic() < outage[0] + DEADLINE, f"{names} did not come back"
                    time.sleep(PROBE_SECONDS)
                outage[1] = time.monotonic()
                time.sleep(between)
            time.sleep(max(0.0, began + FULL_SECONDS * full - time.monotonic()))
        finally:
            watch.stop.set()
            for thread in threads:
                thread.join()
        log = running.log
    took = [f"{over - start:.1f} s" for start, over in watch.outages]
    print(f"{watch.answers:,} answers, {watch.switches} switches, outages of {', '.join(took)}")
    print(f"{len(watch.unavailable):,} unavailable")
    assert watch.wrong == []
    late = [moments for moments in watch.unavailable if not watch.is_excused(*moments)]
    assert late == [], [[round(moment - began, 1) for moment in moments] for moments in late[:20]]
    assert watch.unavailable, "nobody noticed that HBase was killed: nothing was tested"
    assert watch.switches > SWITCHES
    assert watch.answers > 1_000
    assert "Traceback" not in log
