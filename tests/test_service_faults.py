"""The service under load on the second cluster, while releases switch and HBase's servers are killed.

Each answer is compared with the database and with the table of the release that it names. `unavailable` is allowed only
during an outage, and for some seconds after a plain HappyBase connection can read all regions. To be short, the suite
waits between two kills only as long as it takes to see this, and its connections rest between two requests. With
--full, more connections look records up as fast as they can for ten minutes, regions are split and moved, HDFS is full
for some seconds, other daemons are killed too, and the service's clock is wrong by an hour; its memory and its open
files are measured meanwhile.
"""

import http.client
import itertools
import json
import random
import sqlite3
import statistics
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import Project, make_orders
from faults import Faults
from second import REGION_SERVERS
from services import service

from predictions.errors import RefusedError, ServiceError
from predictions.formats.names import release_table, release_time
from predictions.formats.prediction_line import PREDICTION, PROBABILITY, cell_column
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases

pytestmark = pytest.mark.cluster

CONNECTIONS, FULL_CONNECTIONS = 50, 100
FULL_SECONDS = 600
SWITCH_SECONDS, FULL_SWITCH_SECONDS = 0.5, 2.0
POINTER_SECONDS = 0.5  # after that, a client reads again which release is served
SWITCHES = 10  # at least
REST_SECONDS = 0.1  # of a connection between two requests, so that all connections need at most half a core
RECOVERY_SECONDS = 5.0  # in which the service must answer again after an outage
REGION_SERVER_NAMES = tuple(f"regionserver-{index}" for index in range(REGION_SERVERS))
KILLS = (("thrift",), ("thrift",), REGION_SERVER_NAMES)
BETWEEN_SECONDS = 7.0  # of load after each outage, longer than the recovery may take
DEADLINE = 300

CHANGE = "UPDATE orders SET amount = 501 - amount WHERE items % 2"
CHANGED = "SELECT id FROM orders WHERE items % 2 AND amount <> 501 - amount"
SHIFTED_CLOCK = Path(__file__).parent / "shifted_clock.py"
HOUR = 3_600
SLACK_SECONDS = 2  # ages are whole seconds, and the clock is set shortly after it is noted
MAX_AGE = 3_000  # seconds: predictions expire while the clock is an hour ahead, and at no other time

WARM_UP_SECONDS = 120.0
WINDOW_SECONDS = 60.0  # the first one after the warm-up is compared with the last one
GROWTH = 1.1  # of memory and of open files, at most


@pytest.fixture(scope="module")
def orders_project(second, tmp_path_factory):
    """The orders with two releases, in which about every other prediction differs; the second one is served."""
    second.bring_back()
    folder = tmp_path_factory.mktemp("orders")
    orders_project = Project(folder, second, (make_orders(folder) / "predictions.toml").read_text())
    for change in (None, CHANGE):
        if change:
            with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
                connection.execute(change)
        for stage in ("export", "train", "score --runner local", "load --via puts", "activate --force again"):
            orders_project.succeed(*stage.split())
    return orders_project


class Injected(NamedTuple):
    """A fault, and when it began and when its outage ended; times are of the monotonic clock."""

    name: str
    start: float
    end: float


class Usage(NamedTuple):
    """What the service used at a time: bytes of memory, with its share of what it shares, and open files."""

    time: float
    memory: int
    files: int


@dataclass
class Served:
    """A release that may be served: from the start of its activation to the end of the next one that succeeds."""

    release: str
    until: float = float("inf")


@dataclass
class Watch:
    """What happened during the test; times are of the monotonic clock."""

    served: list[Served]  # one for each activation, the latest last
    outages: list[list[float]] = field(default_factory=list)  # start and end of each
    injected: list[Injected] = field(default_factory=list)
    shifts: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])  # since when, and of how many seconds
    wrong: list = field(default_factory=list)
    unavailable: list[tuple[float, float]] = field(default_factory=list)  # times of each request and of its answer
    usages: list[Usage] = field(default_factory=list)
    answers: int = 0
    switches: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def inject(self, name, has_outage, fault, *arguments):
        """Inject a fault; if it has an outage, lookups may fail until it returns."""
        outage = [time.monotonic(), float("inf")]
        if has_outage:
            self.outages.append(outage)
        fault(*arguments)
        outage[1] = time.monotonic()
        self.injected.append(Injected(name, *outage))

    def is_excused(self, sent, answered):
        return any(answered >= start and sent <= end + RECOVERY_SECONDS for start, end in self.outages)

    def may_serve(self, release, sent):
        """Whether a release may have been served between a request and now, or so shortly before that it is used."""
        for served in reversed(self.served):
            if served.until < sent - POINTER_SECONDS:
                break
            if served.release == release:
                return True
        return False

    def is_age(self, age, sent, made):
        """Whether a prediction had this age between a request and now, by a clock that the service had meanwhile."""
        now, newest, shifts = time.monotonic(), time.time() - made, list(self.shifts)
        ends = [*(since for since, _seconds in shifts[1:]), now]
        return any(
            newest - (now - sent) + shift - SLACK_SECONDS <= age <= max(0, newest + shift) + SLACK_SECONDS
            for (_since, shift), end in zip(shifts, ends, strict=True)
            if end + SLACK_SECONDS >= sent
        )

    def in_window(self, index):
        """Return the memory and the open files in the first window after the warm-up (0) or in the last one (-1)."""
        began, ended = self.usages[0].time, self.usages[-1].time
        start = (began + WARM_UP_SECONDS, ended - WINDOW_SECONDS)[index]
        window = [usage for usage in self.usages if start <= usage.time <= start + WINDOW_SECONDS]
        return [statistics.median(values) for values in zip(*window, strict=True)][1:]


class Truth(NamedTuple):
    """The records by ID, and by release the predictions by ID and the IDs of the records that have changed since."""

    records: dict
    predictions: dict
    changed: dict

    def is_answer(self, answer, sent, watch):
        """Whether an answer with a prediction is right."""
        release, record_id = answer.get("release"), answer["id"]
        if release not in self.predictions or "age" not in answer:
            return False
        status = "expired" if answer["age"] > MAX_AGE else "fresh"
        return (
            watch.may_serve(release, sent)
            and (answer["prediction"], answer["probability"]) == self.predictions[release][record_id]
            and datetime.fromisoformat(answer["scored"]) == release_time(release)
            and answer["status"] == ("changed" if record_id in self.changed[release] else status)
            and watch.is_age(answer["age"], sent, release_time(release).timestamp())
        )


def read_truth(project):
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
    with closing(sqlite3.connect(project.path.parent / "orders.db")) as connection:
        connection.row_factory = sqlite3.Row
        records = {row["id"]: dict(row) for row in connection.execute("SELECT * FROM orders")}
        first, second = sorted(predictions)
        changed = {first: {row["id"] for row in connection.execute(CHANGED)}, second: set()}
    assert (
        sum(predictions[first][record_id] != predictions[second][record_id] for record_id in records) > len(records) / 4
    )
    return Truth(records, predictions, changed)


def ask(url, seed, rest, truth, watch):
    """Look records up over one connection, one or twenty at a time, and check each answer."""
    generator, ids = random.Random(seed), sorted(truth.records)
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
        while not watch.stop.wait(rest):
            requested = generator.sample(ids, generator.choice((1, 1, 1, 20)))
            body, sent = json.dumps({"ids": requested}), time.monotonic()
            connection.request("POST", "/records", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = json.loads(response.read())
            answers = content.get("answers", [])
            releases = {answer.get("release") for answer in answers}
            if response.status != 200 or [answer["id"] for answer in answers] != requested or len(releases) > 1:
                watch.wrong.append((sent, time.monotonic(), response.status, content))
                continue
            for answer in answers:
                check(answer, sent, truth, watch)


def check(answer, sent, truth, watch):
    watch.answers += 1
    if answer["status"] == "unavailable":
        watch.unavailable.append((sent, time.monotonic()))
        is_right = answer["unavailable"] == ["hbase"] and "prediction" not in answer
    else:
        is_right = truth.is_answer(answer, sent, watch)
    if not is_right or answer.get("record") != truth.records[answer["id"]]:
        watch.wrong.append((sent, time.monotonic(), answer))


def switch(project, pause, releases, watch):
    """Activate the releases in turn."""
    with Connection(project.settings.hbase.server()) as connection:
        pointer = Releases(connection, project.name)
        while not watch.stop.wait(pause):
            release = releases[watch.switches % len(releases)]
            watch.served.append(Served(release))
            # Refused: HBase carries out a switch of before, though there was no answer.
            with suppress(ServiceError, RefusedError):
                pointer.activate(release, force=True)
                watch.switches += 1
                for served in watch.served[:-1]:
                    served.until = min(served.until, time.monotonic())


def measure(process, watch):
    """Measure the memory and the open files of a process every second."""
    while not watch.stop.wait(1):
        watch.usages.append(Usage(time.monotonic(), process.memory_full_info().pss, process.num_fds()))


def until_stopped(task, *arguments):
    """Run a task that ends with the watch, its last argument; an exception counts as a wrong answer."""
    try:
        task(*arguments)
    except Exception as error:
        arguments[-1].wrong.append((time.monotonic(), time.monotonic(), repr(error)))


@contextmanager
def load(project, running, connections, rest, pause):
    """Put a service under load while releases switch; then check that all answers were right.

    Args:
        project: the project whose records the service looks up.
        running: the service.
        connections: the number of connections to it.
        rest: seconds between two requests of a connection.
        pause: seconds between two switches.
    """
    with Connection(project.settings.hbase.server()) as connection:
        served = Served(Releases(connection, project.name).pointer().current)
    truth, watch, began = read_truth(project), Watch([served]), time.monotonic()
    tasks = [(ask, running.url, seed, rest, truth, watch) for seed in range(connections)]
    tasks.append((switch, project, pause, sorted(truth.predictions), watch))
    tasks.append((measure, psutil.Process(running.process.pid), watch))
    threads = [threading.Thread(target=until_stopped, args=task) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)  # of load without an outage
        yield watch
    finally:
        watch.stop.set()
        for thread in threads:
            thread.join()
        report(watch, began)
    assert watch.wrong == []
    late = [moments for moments in watch.unavailable if not watch.is_excused(*moments)]
    assert late == [], [[round(moment - began, 1) for moment in moments] for moments in late[:20]]
    assert watch.unavailable, "no lookup noticed that HBase was killed: nothing was tested"
    assert watch.switches > SWITCHES
    assert watch.answers > 1_000
    assert "Traceback" not in running.log


def report(watch, began):
    """Print what happened; pytest shows it if the test fails."""
    print(
        f"{watch.answers:,} answers, {len(watch.wrong)} wrong, {len(watch.unavailable):,} unavailable, {watch.switches} switches"
    )
    for name, start, end in watch.injected:
        times = [answered for _sent, answered in watch.unavailable if start <= answered <= end + BETWEEN_SECONDS]
        lost = f"{len(times):,} unavailable, the last after {max(times) - start:.1f} s" if times else "all answered"
        print(f"{start - began:5.0f} s: {name}, {end - start:.1f} s: {lost}")
    for sent, answered, *wrong in watch.wrong[:20]:
        print(f"{sent - began:.2f} to {answered - began:.2f} s: {wrong}")
    for usage in watch.usages[::10]:
        print(f"{usage.time - began:5.0f} s: {usage.memory / 1e6:.1f} MB, {usage.files} open files")


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


def test_fifty_connections_while_releases_switch_and_servers_die(orders_project, second, tmp_path):
    faults = Faults(second, orders_project, orders_project.storage.releases())
    with (
        closing(faults),
        service(orders_project.path, tmp_path, "--max-age", str(MAX_AGE), PREDICTIONS_HBASE_TIMEOUT="10") as running,
        load(orders_project, running, CONNECTIONS, REST_SECONDS, SWITCH_SECONDS) as watch,
    ):
        for names in KILLS:
            watch.inject(f"{' and '.join(names)} killed", True, faults.kill, *names)
            time.sleep(BETWEEN_SECONDS)


def test_ten_minutes_of_every_fault(orders_project, second, tmp_path, full):
    if not full:
        pytest.skip("--full runs it; servers are killed in the test above")
    shift = tmp_path / "shift"  # of the service's clock

    def set_clock(seconds):
        watch.shifts.append((time.monotonic(), seconds))
        replacement = shift.with_suffix(".new")
        replacement.write_text(str(seconds))
        replacement.replace(shift)

    shift.write_text("0")
    options = {"program": [str(SHIFTED_CLOCK)], "SHIFT": str(shift), "PREDICTIONS_HBASE_TIMEOUT": "10"}
    faults = Faults(second, orders_project, orders_project.storage.releases())
    with (
        closing(faults),
        service(orders_project.path, tmp_path, "--max-age", str(MAX_AGE), **options) as running,
        load(orders_project, running, FULL_CONNECTIONS, 0.0, FULL_SWITCH_SECONDS) as watch,
    ):
        began = time.monotonic()
        rotation = (
            ("thrift killed", True, faults.kill, "thrift"),
            ("HDFS full", True, faults.fill_hdfs),
            ("clock an hour ahead", False, set_clock, HOUR),
            ("master killed", True, faults.kill, "master"),
            ("region moved", False, faults.move_region),
            ("regionserver-0 killed", True, faults.kill, REGION_SERVER_NAMES[0]),
            ("zookeeper killed", True, faults.kill_below, "zookeeper"),
            ("clock an hour late", False, set_clock, -HOUR),
            ("datanode killed", True, faults.kill_below, "datanode"),
            ("region split", False, faults.split_region),
            ("regionserver-1 killed", True, faults.kill, REGION_SERVER_NAMES[1]),
            ("namenode killed", True, faults.kill_below, "namenode"),
            ("clock right", False, set_clock, 0),
            ("both region servers killed", True, faults.kill, *REGION_SERVER_NAMES),
        )
        for fault in itertools.cycle(rotation):
            if time.monotonic() > began + FULL_SECONDS:
                break
            watch.inject(*fault)
            time.sleep(BETWEEN_SECONDS)
    (memory, files), (last_memory, last_files) = watch.in_window(0), watch.in_window(-1)
    assert last_memory < GROWTH * memory
    assert last_files < GROWTH * files
