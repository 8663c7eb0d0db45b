"""Loads on the second cluster, with two region servers: each load is complete, whatever is killed during it.

Without --full, the tests load a sixteenth of the flights, in smaller batches and at a rate at which a load takes as
long. A part then has as many batches and checkpoints as with --full, which loads all flights in usual batches.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import requests
from conftest import CHECKOUT, manifest_of
from hbase_admin import expire_server, keep_regions_in_place, make_table, move_region, split_region
from inprocess import call
from second import REGION_SERVERS

import loader.batches
from examples.flights.make_database import make_database
from predictions.formats.names import release_table
from predictions.formats.prediction_line import FAMILY
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.settings import load_settings
from predictions.storage import Storage

pytestmark = pytest.mark.cluster

FLIGHTS = 336_776
EVERY = 16  # every 16th flight is loaded, without --full
SMALL_BATCHES = Path(__file__).parent / "small_batches.py"
SMALL_BYTES = 15_000  # batch size without --full
PROCESSES = 2
SECONDS = 8  # that a load takes at least, once the table exists
CHECKPOINT = b"r:checkpoint"
DEADLINE = 300  # seconds; on a busy machine, seconds of work take minutes
GONE_SECONDS = 20  # until the last process of a killed load exits: after a batch, or a JVM that creates a table


@pytest.fixture(scope="module")
def scored(second, tmp_path_factory, full):
    """The settings file of an exported and scored release of flights, which all tests load."""
    folder = tmp_path_factory.mktemp("flights")
    database = CHECKOUT / "var" / "flights.db"
    if not database.exists():
        database = folder / "flights.db"
        assert make_database(database) == FLIGHTS
    text = (CHECKOUT / "examples" / "flights" / "predictions.toml").read_text()
    text = re.sub(r"(?m)^url .*", f'url = "sqlite:///{database}"', text)
    if not full:
        text = re.sub(r"(?m)^table .*", f'query = "SELECT * FROM flights WHERE flight_id % {EVERY} = 0"', text)
    # The quality of the predictions does not matter here.
    text = re.sub(r"(?m)^params .*", "params = { max_iter = 5 }\nsample = 5_000", text)
    text = re.sub(r"(?m)^thrift .*", f'thrift = "127.0.0.1:{second.config.port("thrift")}"', text)
    text = re.sub(r"(?ms)^\[hadoop\].*", f'[hadoop]\nstorage = "storage"\nbin = "{CHECKOUT}/hadoop/bin"\n', text)
    path = folder / "predictions.toml"
    path.write_text(text)
    for stage in (["export"], ["train"], ["score", "--runner", "local"]):
        result = call(["--settings", str(path), *stage], folder, processes=full)
        assert result.returncode == 0, result.stderr
    keep_regions_in_place(second)  # a region that moves counts its requests from 0 again
    return path


class Trial:
    """A copy of the scored release under another name, and its loads."""

    def __init__(self, path, cluster, full):
        self._path = path
        self._cluster = cluster
        self._program = ["-m", "predictions"] if full else [str(SMALL_BATCHES)]
        self._batch_bytes = loader.batches.BATCH_BYTES if full else SMALL_BYTES
        self._name = f"trial_{uuid.uuid4().hex[:8]}"
        self._loads = []
        settings = load_settings(path)
        source = Storage(settings.hadoop.storage, settings.name).release()
        storage = Storage(settings.hadoop.storage, self._name)
        shutil.copytree(source.path, f"{storage.folder}/{source.release}")
        self._folder = storage.release()
        self.table = release_table(self._name, self._folder.release)
        self._connection = Connection(settings.hbase.server(loading=True))
        scored = manifest_of(self._folder).scored
        self.rows, self._points = scored.rows, scored.split_points

    def make_table(self):
        """Create the release's table as a load does, but without a JVM."""
        releases, release = Releases(self._connection, self._name), self._folder.release
        releases.make_table()
        releases.claim(release)
        releases.start_load(release)
        make_table(self._cluster, self.table, FAMILY, [point.encode() for point in self._points])
        wait(lambda: len(self.regions()) == len(self._points) + 1)

    def close(self):
        self._connection.close()
        for load in self._loads:
            for process in family(load):
                process.kill()
            load.communicate()

    def load(self, seconds=None):
        """Start a load, at a rate at which it takes this many seconds."""
        options = ["--rate", f"{self.rows / seconds:.0f}"] if seconds else []
        load = subprocess.Popen(
            [sys.executable, *self._program, "--settings", self._path, "load", "--processes", str(PROCESSES), *options],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **self._environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._loads.append(load)
        return load

    def reach(self, load, share):
        """Wait until a load has written a share of the rows."""
        wait(lambda: load.poll() is not None or self._rows() >= share * self.rows)
        assert load.poll() is None, load.communicate()

    def is_whole(self, *loads):
        """Wait for loads to end, and compare every cell."""
        for load in loads:
            _stdout, stderr = load.communicate(timeout=DEADLINE)
            assert load.returncode == 0, stderr
        check = call(["--settings", str(self._path), "verify", "--full"], self._path.parent, **self._environment)
        assert check.returncode == 0, check.stdout + check.stderr
        assert f"{self.rows:,} rows" in check.stderr
        return True

    def regions(self):
        """Return the server of each region of the table, by the region's first row key."""
        return {region.start: region.server for region in self._connection.regions(self.table)}

    def rows_written(self):
        """Return the number of rows that the region servers were asked to write, from their own metrics."""
        total, query = 0, {"qry": "Hadoop:service=HBase,name=RegionServer,sub=Tables"}
        for index in range(REGION_SERVERS):
            port = self._cluster.config.port("regionserver_web", index)
            (metrics,) = requests.get(f"http://127.0.0.1:{port}/jmx", query, timeout=60).json()["beans"]
            total += metrics.get(f"Namespace_default_table_{self.table}_metric_writeRequestCount", 0)
        return total

    @property
    def batch_rows(self):
        """The number of rows of the largest batch."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader.batches, "BATCH_BYTES", self._batch_bytes)
            return max(
                len(batch.lines)
                for path in self._folder.files("scored")
                for batch in loader.batches.batches(self._folder.blocks(path), path, 0, (b"", b""), [])
            )

    @property
    def _environment(self):
        names = {"PREDICTIONS_NAME": self._name, "CLUSTER_DIR": str(self._cluster.config.folder)}
        return {**names, "SMALL_BYTES": str(SMALL_BYTES)}

    def _rows(self):
        """Return the number of loaded rows according to the checkpoints."""
        if not Releases(self._connection, self._name).table_exists:
            return 0
        pages = self._connection.scan(self._name, b"load:", b"load;", [CHECKPOINT])
        return sum(json.loads(row.cells[CHECKPOINT].value)["rows"] for page in pages for row in page)


@pytest.fixture
def trials(scored, second, full):
    open_trials = []

    def trial():
        open_trials.append(Trial(scored, second, full))
        return open_trials[-1]

    second.bring_back()

    yield trial
    for open_trial in open_trials:
        open_trial.close()


@pytest.fixture
def trial(trials):
    """A trial whose table exists."""
    trial = trials()
    trial.make_table()
    return trial


def wait(condition):
    """Poll until a condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.1)


def family(load):
    """Return the process of a load and its descendants."""
    try:
        process = psutil.Process(load.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process):
    process.kill()
    process.wait()


def ended(load, seconds):
    """Return whether a load exits within some seconds."""
    try:
        load.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def are_gone(processes):
    """Return whether processes exit within `GONE_SECONDS`."""
    _gone, alive = psutil.wait_procs(processes, GONE_SECONDS)
    return not alive


def test_the_thrift_server_killed_thrice_in_one_load(trial, second):
    load = trial.load(SECONDS)
    for share in (0.1, 0.5, 0.9):
        trial.reach(load, share)
        second.kill("thrift")
        second.bring_back()
    assert trial.is_whole(load)


def test_the_thrift_server_stopped_for_some_seconds(trial, second, full):
    """Stop it for longer than a batch takes and shorter than a request waits: earlier requests are answered late."""
    load = trial.load(SECONDS)
    trial.reach(load, 0.3)
    thrift = second.process("thrift")
    thrift.suspend()
    try:
        time.sleep(10 if full else 3)  # the fault lasts this long
    finally:
        thrift.resume()
    assert load.poll() is None
    assert trial.is_whole(load)


def test_both_region_servers_killed_one_after_the_other(trial, second, full):
    """Restart the first one after its regions have moved to the other server, the second one at once.

    Only with --full, HBase takes the 20 s of a session to notice that the first one is dead.
    """
    load = trial.load(SECONDS)
    for share, taken_over in ((0.2, True), (0.6, False)):
        trial.reach(load, share)
        address = max(trial.regions().values())
        index = int(address.rpartition(":")[2]) - second.config.port("regionserver")
        second.kill(f"regionserver-{index}")
        if taken_over:
            if not full:
                expire_server(second, address)
            wait(lambda dead=address: dead not in trial.regions().values())
        second.bring_back()
    assert trial.is_whole(load)


def test_a_region_split_and_another_moved(trial, second):
    load = trial.load(2 * SECONDS)
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
    print("seed", seed)  # pytest shows it if the test fails
    chance = random.Random(seed)
    kills_left = 20 if full else 3
    while kills_left:
        trial, kills, processes = trials(), 0, []
        load = trial.load(SECONDS * 2 / 3)
        while kills_left and not ended(load, chance.uniform(0, 15 if full else SECONDS)):
            processes += family(load)
            kill(load)
            kills, kills_left = kills + 1, kills_left - 1
            load = trial.load(SECONDS * 2 / 3)  # at once: processes of the killed load may still run
        assert trial.is_whole(load)
        assert trial.rows_written() <= trial.rows + kills * PROCESSES * trial.batch_rows
        assert are_gone(processes)


def test_a_killed_loader_takes_its_processes_along_and_no_more_than_a_batch_each_is_sent_again(trial):
    load = trial.load(SECONDS)
    for share in (0.3, 0.6):
        trial.reach(load, share)
        processes = family(load)
        assert len(processes) > PROCESSES
        kill(load)
        assert are_gone(processes)
        load = trial.load(SECONDS)
    assert trial.is_whole(load)
    wait(lambda: trial.rows_written() >= trial.rows)  # the metrics are some seconds old
    assert trial.rows_written() <= trial.rows + 2 * PROCESSES * trial.batch_rows


def test_the_loader_killed_while_it_makes_the_table(trials):
    trial = trials()
    load = trial.load()
    wait(lambda: any("RegionSplitter" in " ".join(process.cmdline()) for process in family(load)))
    kill(load)
    assert trial.is_whole(trial.load())


def test_a_killed_process_of_the_loader_ends_it_with_one_line(trial):
    load = trial.load(SECONDS)
    trial.reach(load, 0.3)
    worker = next(process for process in family(load) if "--multiprocessing-fork" in process.cmdline())
    kill(worker)
    _stdout, stderr = load.communicate(timeout=DEADLINE)
    assert load.returncode == 6
    lines = [line for line in stderr.splitlines() if not line.startswith("load: ")]
    assert lines == ["predictions: a process of this run was killed by SIGKILL; run the command again"]
    assert trial.is_whole(trial.load())


def test_three_loads_of_a_release_at_once(trial):
    """Start two loads together, and a third one when they are half done: loads do not know of each other."""
    both = trial.load(SECONDS), trial.load(SECONDS)
    trial.reach(both[0], 0.5)
    assert trial.is_whole(trial.load(), *both)
