"""The service under load on the second cluster, while releases switch and HBase's servers are killed.

Each answer is compared with the database and with the table of the release that it names. `unavailable` is allowed only
during an outage, and for some seconds after a plain HappyBase connection can read all regions. To be short, the suite
waits between two kills only as long as it takes to see this, and its connections rest between two requests; with
--full, the load is as high as possible and lasts for a minute in all.
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
import psutil
import pytest
from conftest import Project, make_orders
from second import REGION_SERVERS
from services import service
from thriftpy2.thrift import TException

from predictions.errors import ServiceError
from predictions.formats.names import release_table
from predictions.formats.prediction_line import PREDICTION, PROBABILITY, cell_column
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases

pytestmark = pytest.mark.cluster

CONNECTIONS = 50
FULL_SECONDS = 60
SWITCH_SECONDS = 0.5
SWITCHES = 10  # at least
REST_SECONDS = 0.1  # of a connection between two requests, so that all connections need at most half a core
RECOVERY_SECONDS = 5.0  # in which the service must answer again after an outage
KILLS = (("thrift",), ("thrift",), tuple(f"regionserver-{index}" for index in range(REGION_SERVERS)))
BETWEEN_SECONDS = 7.0  # of load after each outage, longer than the recovery may take
FULL_BETWEEN_SECONDS = 10.0
PROBE_SECONDS = 0.2
DEADLINE = 300


@pytest.fixture(scope="module")
def orders_project(second, tmp_path_factory):
    """The orders with two releases, in which about every other prediction differs; the second one is served."""
    second.bring_back()
    folder = tmp_path_factory.mktemp("orders")
    orders_project = Project(folder, second, (make_orders(folder) / "predictions.toml").read_text())
    for change in (None, "UPDATE orders SET amount = 501 - amount WHERE items % 2"):
        if change:
            with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
                connection.execute(change)
        for stage in ("export", "train", "score --runner local", "load --via puts", "activate --force again"):
            orders_project.succeed(*stage.split())
    return orders_project


@dataclass
class Watch:
    """What happened during the test; times are of the monotonic clock."""

    outages: list[list[float]] = field(default_factory=list)  # start and end of each
    wrong: list = field(default_factory=list)
    unavailable: list[tuple[float, float]] = field(default_factory=list)  # times of each request and of its answer
    answers: int = 0
    switches: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def is_excused(self, sent, answered):
        return any(answered >= start and sent <= end + RECOVERY_SECONDS for start, end in self.outages)


def read_truth(project, database):
    """Return each release's predictions by ID, and the records by ID."""
    with Connection(project.settings.hbase.server()) as connection:
        predictions = {}
        for release in project.storage.releases():
            rows = [row for page in connection.scan(release_table(project.name, release), b"", b"") for row in page]
            predictions[release] = {
                row.key.decode().partition(":")[2]: (
                    int(row.cells[cell_column(PREDICTION)].value),
                    float(row.cells[cell_column(PROBABILITY)].value),
                )
                for row in rows
            }
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return predictions, {row["id"]: dict(row) for row in connection.execute("SELECT * FROM orders")}


def ask(url, seed, rest, truth, records, watch):
    """Look records up over one connection, one or twenty at a time, and check each answer."""
    generator, ids = random.Random(seed), sorted(records)
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
        while not watch.stop.wait(rest):
            requested = generator.sample(ids, generator.choice((1, 1, 1, 20)))
            body, sent = json.dumps({"ids": requested}), time.monotonic()
            connection.request("POST", "/records", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = json.loads(response.read())
            if response.status != 200 or [answer["id"] for answer in content["answers"]] != requested:
                watch.wrong.append((response.status, content))
                continue
            for answer in content["answers"]:
                check(answer, sent, truth, records, watch)


def ask_on(watch, *arguments):
    """Look records up until the end; an exception counts as a wrong answer."""
    try:
        ask(*arguments, watch)
    except Exception as error:
        watch.wrong.append(repr(error))


def check(answer, sent, truth, records, watch):
    watch.answers += 1
    record_id = answer["id"]
    if answer.get("record") != records[record_id]:
        watch.wrong.append(answer)
    elif answer["status"] == "unavailable":
        watch.unavailable.append((sent, time.monotonic()))
        if answer["unavailable"] != ["hbase"] or "prediction" in answer:
            watch.wrong.append(answer)
    elif (answer.get("prediction"), answer.get("probability")) != truth.get(answer.get("release"), {}).get(record_id):
        watch.wrong.append(answer)


def switch(project, releases, watch):
    """Activate the two releases in turn."""
    with Connection(project.settings.hbase.server()) as connection:
        pointer = Releases(connection, project.name)
        while not watch.stop.wait(SWITCH_SECONDS):
            with suppress(ServiceError):
                pointer.activate(releases[watch.switches % 2], force=True)
                watch.switches += 1


def test_a_namenode_killed_for_ten_seconds_during_a_job(second, tmp_path):
    second.bring_back()
    project = Project(tmp_path, second, (make_orders(tmp_path) / "predictions.toml").read_text())
    folder = project.train()
    project.succeed("score", "--runner", "local")
    expected = project.scored(folder)
    folder.remove("scored")
    job = project.popen("score", "--runner", "hadoop")
    try:
        deadline = time.monotonic() + DEADLINE
        while not has_task(second):
            assert job.poll() is None, job.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second.kill("namenode")
        time.sleep(10)  # the fault lasts this long
        second.bring_back()
        _stdout, stderr = job.communicate(timeout=DEADLINE)
    finally:
        job.kill()
        job.wait()
        second.bring_back()
    assert job.returncode == 0, stderr
    assert project.scored(folder) == expected


def has_task(cluster):
    """Whether a task of a job runs on a cluster."""
    folder = str(cluster.config.folder)
    commands = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return any("YarnChild" in command and folder in command for command in commands)


def is_back(port, tables):
    """Whether a plain HappyBase connection can read the given rows of each table."""
    try:
        with closing(happybase.Connection("127.0.0.1", port, timeout=1_000)) as connection:
            return all(len(connection.table(table).rows(keys)) == len(keys) for table, keys in tables.items())
    except (OSError, TException):
        return False


def test_fifty_connections_while_releases_switch_and_servers_die(orders_project, second, tmp_path, full):
    between, rest = (FULL_BETWEEN_SECONDS, 0.0) if full else (BETWEEN_SECONDS, REST_SECONDS)
    truth, records = read_truth(orders_project, orders_project.path.parent / "orders.db")
    releases = sorted(truth)
    assert (
        sum(truth[releases[0]][record_id] != truth[releases[1]][record_id] for record_id in records) > len(records) / 4
    )
    with Connection(orders_project.settings.hbase.server()) as connection:
        tables = {}
        for release in releases:
            table = release_table(orders_project.name, release)
            starts = [region.start for region in connection.regions(table)]
            tables[table] = [next(connection.scan(table, start, b"", page_rows=1))[0].key for start in starts]
        tables[orders_project.name] = [b"pointer"]
    watch = Watch()
    with service(orders_project.path, tmp_path, PREDICTIONS_HBASE_TIMEOUT="10") as running:
        threads = [
            threading.Thread(target=ask_on, args=(watch, running.url, seed, rest, truth, records))
            for seed in range(CONNECTIONS)
        ]
        threads.append(threading.Thread(target=switch, args=(orders_project, releases, watch)))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)  # of load without an outage
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
    durations = [f"{end - start:.1f} s" for start, end in watch.outages]
    print(f"{watch.answers:,} answers, {watch.switches} switches, outages of {', '.join(durations)}")
    print(f"{len(watch.unavailable):,} unavailable")
    assert watch.wrong == []
    late = [moments for moments in watch.unavailable if not watch.is_excused(*moments)]
    assert late == [], [[round(moment - began, 1) for moment in moments] for moments in late[:20]]
    assert watch.unavailable, "no lookup noticed that HBase was killed: nothing was tested"
    assert watch.switches > SWITCHES
    assert watch.answers > 1_000
    assert "Traceback" not in log
