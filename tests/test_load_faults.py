"""Loads on a cluster of its own with two region servers: whatever dies meanwhile, each ends with every cell in place."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import uuid

import psutil
import pytest
import requests
from conftest import CHECKOUT, own_cluster
from hbase_admin import keep_regions_in_place, move_region, split_region

from examples.flights.make_database import make_database
from loader.batches import batches
from loader.connection import Connection
from predictions.pointer import Releases
from predictions.release import release_table
from predictions.settings import load_settings
from predictions.storage import Storage

pytestmark = pytest.mark.cluster

OFFSET = 2000
REGION_SERVERS = 2
FLIGHTS = 336_776
PROCESSES = 2
CHECKPOINT = b"r:checkpoint"
DEADLINE = 300  # seconds; what takes seconds takes minutes where others are at work on the machine
GONE_SECONDS = 20  # until no process of a dead load is left; it is one batch, or a JVM that makes a table


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    with own_cluster(tmp_path_factory.mktemp("cluster"), OFFSET, REGION_SERVERS) as cluster:
        keep_regions_in_place(cluster)  # one that moves begins to count anew
        yield cluster


@pytest.fixture(scope="module")
def scored(second, tmp_path_factory):
    """The settings file of all flights, exported and scored: the lines that every load here is of."""
    folder = tmp_path_factory.mktemp("flights")
    database = CHECKOUT / "var" / "flights.db"
    if not database.exists():
        database = folder / "flights.db"
        assert make_database(database) == FLIGHTS
    text = (CHECKOUT / "examples" / "flights" / "predictions.toml").read_text()
    text = re.sub(r"(?m)^url .*", f'url = "sqlite:///{database}"', text)
    # What is predicted does not matter here.
    text = re.sub(r"(?m)^params .*", "params = { max_iter = 5 }\nsample = 5_000", text)
    text = re.sub(r"(?m)^thrift .*", f'thrift = "127.0.0.1:{second.config.port("thrift")}"', text)
    text = re.sub(r"(?ms)^\[hadoop\].*", f'[hadoop]\nstorage = "storage"\nbin = "{CHECKOUT}/hadoop/bin"\n', text)
    path = folder / "predictions.toml"
    path.write_text(text)
    for stage in (["export"], ["train"], ["score", "--runner", "local"]):
        done = subprocess.run([sys.executable, "-m", "predictions", "--settings", path, *stage], cwd=CHECKOUT)
        assert done.returncode == 0
    return path


class Trial:
    """A copy of the scored release under a name of its own, and the loads of it."""

    def __init__(self, path, cluster):
        self._path = path
        self._cluster = cluster
        self._name = f"trial_{uuid.uuid4().hex[:8]}"
        self._loads = []
        settings = load_settings(path)
        source = Storage(settings.hadoop.storage, settings.name).release()
        storage = Storage(settings.hadoop.storage, self._name)
        shutil.copytree(source.path, f"{storage.folder}/{source.release}")
        self._folder = storage.release()
        self.table = release_table(self._name, self._folder.release)
        self._connection = Connection(settings.hbase.server(loading=True))

    def close(self):
        self._connection.close()
        for load in self._loads:
            for process in family(load):
                process.kill()
            load.communicate()

    def load(self, *options):
        """Begin to load."""
        load = self._popen("load", "--processes", str(PROCESSES), *options)
        self._loads.append(load)
        return load

    def reach(self, load, share):
        """Wait until a load has come so far."""
        wait(lambda: load.poll() is not None or self._rows() >= share * FLIGHTS)
        assert load.poll() is None, load.communicate()

    def is_whole(self, *loads):
        """Wait for loads, and compare every cell."""
        for load in loads:
            _stdout, stderr = load.communicate(timeout=DEADLINE)
            assert load.returncode == 0, stderr
        check = self._popen("verify", "--full")
        stdout, stderr = check.communicate(timeout=DEADLINE)
        assert check.returncode == 0, stdout + stderr
        assert f"{FLIGHTS:,} rows" in stderr
        return True

    def regions(self):
        """The first row keys of the table's regions, and where each is."""
        return dict(self._connection.regions(self.table))

    def rows_written(self):
        """How many rows the region servers were told to write, as they count them themselves."""
        total, query = 0, {"qry": "Hadoop:service=HBase,name=RegionServer,sub=Tables"}
        for index in range(REGION_SERVERS):
            port = self._cluster.config.port("regionserver_web", index)
            (found,) = requests.get(f"http://127.0.0.1:{port}/jmx", query, timeout=60).json()["beans"]
            total += found.get(f"Namespace_default_table_{self.table}_metric_writeRequestCount", 0)
        return total

    @property
    def batch_rows(self):
        """The rows of the largest batch."""
        return max(
            len(batch.lines)
            for path in self._folder.files("scored")
            for batch in batches(self._folder.blocks(path), path, 0, (b"", b""), [])
        )

    def _rows(self):
        """How many rows the checkpoints say are loaded."""
        if not Releases(self._connection, self._name).is_there:
            return 0
        pages = self._connection.scan(self._name, b"load:", b"load;", [CHECKPOINT])
        return sum(json.loads(row.cells[CHECKPOINT].value)["rows"] for page in pages for row in page)

    def _popen(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "predictions", "--settings", self._path, *arguments],
            cwd=CHECKOUT,
            env={**os.environ, "PREDICTIONS_NAME": self._name, "CLUSTER_DIR": str(self._cluster.config.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def trials(scored, second):
    made = []

    def trial():
        made.append(Trial(scored, second))
        return made[-1]

    yield trial
    for each in made:
        each.close()


@pytest.fixture
def trial(trials):
    return trials()


def wait(condition):
    """Poll until a condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.1)


def family(load):
    """A load's process and those that it has started."""
    try:
        process = psutil.Process(load.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process):
    process.kill()
    process.wait()


def ended(load, seconds):
    """Whether a load ends by itself within so many seconds."""
    try:
        load.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def are_gone(processes):
    """Whether processes end within some seconds."""
    _gone, alive = psutil.wait_procs(processes, GONE_SECONDS)
    return not alive


def test_the_thrift_server_killed_thrice_in_one_load(trial, second):
    load = trial.load("--rate", "40000")
    for share in (0.1, 0.5, 0.9):
        trial.reach(load, share)
        kill(second.process("thrift"))
        second.start(REGION_SERVERS, print)
    assert trial.is_whole(load)


def test_the_thrift_server_stopped_for_ten_seconds(trial, second):
    load = trial.load("--rate", "40000")
    trial.reach(load, 0.3)
    thrift = second.process("thrift")
    thrift.suspend()
    try:
        time.sleep(10)  # these ten seconds are the fault
    finally:
        thrift.resume()
    assert load.poll() is None
    assert trial.is_whole(load)


def test_both_region_servers_killed_one_after_the_other(trial, second):
    """The regions of the first are taken over before it is started again, the second one is started at once."""
    load = trial.load("--rate", "40000")
    for share, taken_over in ((0.2, True), (0.6, False)):
        trial.reach(load, share)
        address = max(trial.regions().values())
        index = int(address.rpartition(":")[2]) - second.config.port("regionserver")
        kill(second.process(f"regionserver-{index}"))
        if taken_over:
            wait(lambda dead=address: dead not in trial.regions().values())
        second.start(REGION_SERVERS, print)
    assert trial.is_whole(load)


def test_a_region_split_and_another_moved(trial, second):
    load = trial.load("--rate", "20000")
    trial.reach(load, 0.1)
    split_region(second, trial.table, b"6000")
    wait(lambda: b"6000" in trial.regions())
    before = trial.regions()[b"c000"]
    move_region(second, trial.table, b"c000")
    wait(lambda: trial.regions()[b"c000"] != before)
    assert load.poll() is None
    assert trial.is_whole(load)


def test_the_loader_killed_at_random_times(trials, full):
    seed = random.randrange(1 << 32)
    print("seed", seed)  # pytest shows it where the test fails
    chance = random.Random(seed)
    left = 20 if full else 3
    while left:
        trial, kills, processes = trials(), 0, []
        load = trial.load("--rate", "60000")
        while left and not ended(load, chance.uniform(0, 15)):
            processes += family(load)
            kill(load)
            kills, left = kills + 1, left - 1
            load = trial.load("--rate", "60000")  # at once: the processes of the dead one may not have noticed yet
        assert trial.is_whole(load)
        assert trial.rows_written() <= FLIGHTS + kills * PROCESSES * trial.batch_rows
        assert are_gone(processes)


def test_a_killed_loader_takes_its_processes_along_and_no_more_than_a_batch_each_is_sent_again(trial):
    load = trial.load("--rate", "40000")
    for share in (0.3, 0.6):
        trial.reach(load, share)
        processes = family(load)
        assert len(processes) > PROCESSES
        kill(load)
        assert are_gone(processes)
        load = trial.load("--rate", "40000")
    assert trial.is_whole(load)
    wait(lambda: trial.rows_written() >= FLIGHTS)  # its figures are some seconds old
    assert trial.rows_written() <= FLIGHTS + 2 * PROCESSES * trial.batch_rows


def test_the_loader_killed_while_it_makes_the_table(trial):
    load = trial.load()
    wait(lambda: any("RegionSplitter" in " ".join(process.cmdline()) for process in family(load)))
    kill(load)
    assert trial.is_whole(trial.load())


def test_a_killed_process_of_the_loader_ends_it_with_one_line(trial):
    load = trial.load("--rate", "40000")
    trial.reach(load, 0.3)
    worker = next(process for process in family(load) if "--multiprocessing-fork" in process.cmdline())
    kill(worker)
    _stdout, stderr = load.communicate(timeout=DEADLINE)
    assert load.returncode == 6
    lines = [line for line in stderr.splitlines() if not line.startswith("load: ")]
    assert lines == ["predictions: a process of this run was killed by SIGKILL; run the command again"]
    assert trial.is_whole(trial.load())


def test_three_loads_of_a_release_at_once(trial):
    """Two begun at the same time, one when they have come some way: they know nothing of each other."""
    both = trial.load("--rate", "20000"), trial.load("--rate", "20000")
    trial.reach(both[0], 0.5)
    assert trial.is_whole(trial.load(), *both)
