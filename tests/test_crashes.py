"""Kill the driver of `predictions run` at every step: clients keep the served release, and the next run succeeds.

Without --full, the driver takes shortcuts: it uses YARN only where it is killed while the job runs, starts other
processes only where it is killed next to one, and waits only briefly for the lease of a dead run. With --full, it does
all that it does in production, and a complete run follows each crash.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import CHECKOUT, make_orders

from predictions.cli.exits import INTERRUPTED
from predictions.hbase.connection import Connection
from predictions.hbase.lease import SILENT_SECONDS
from predictions.hbase.releases import BUILDING, DROPPED, Releases
from predictions.stages.compare import kept

pytestmark = pytest.mark.cluster

KILLER = Path(__file__).parent / "kill_at.py"
DEADLINE = 300  # seconds, of a run
AT_ONCE = {"PREDICTIONS_RETENTION_GRACE_HOURS": "0", "PREDICTIONS_RETENTION_KEEP": "1"}

# In the order of a run. Each run is killed one point later than the previous one, so it must cope with what that has
# left behind.
POINTS = {
    "the export is being written": "predictions.storage:ReleaseFolder.create:exit:/_export.",
    "exported, without a manifest": "predictions.storage:ReleaseFolder.write_manifest:enter",
    "the model is written, not renamed": "predictions.storage:ReleaseFolder._rename:enter:/model",
    "the release is claimed, the table does not exist": "predictions.hbase.releases:Releases.claim:exit",
    "the files that the job ships are written": "predictions.stages.score_hadoop:ScoreJob.ship:exit",
    "the job is running": "predictions.jobs.streaming:JobClient.run:progress",
    "the job is done, its lines are not renamed": "predictions.jobs.streaming:JobClient.run:exit",
    "the HFiles are renamed, not the lines": "predictions.storage:ReleaseFolder.take:exit",
    "scored": "predictions.storage:ReleaseFolder._rename:exit:/scored",
    "the table is created, and empty": "loader.puts:PutLoad.load:enter",
    "HBase has taken over the files": "loader.bulk:_bulk_load:exit",
    "the manifest says loaded, HBase does not": "predictions.hbase.releases:Releases.finish:enter",
    "the gates are evaluated, the pointer is not switched": "predictions.hbase.releases:Releases._switch:enter",
    "the pointer is switched": "predictions.hbase.releases:Releases._switch:exit",
}
WITH_FULL = {"the HFiles are renamed, not the lines"}  # nearly the same as the previous point, and needs a job
ON_YARN = "the job is running"
TAKEN_OVER = "HBase has taken over the files"
ORDER = list(POINTS)
WITHOUT_COMMANDS = {"PREDICTIONS_HADOOP_BIN": "/nowhere"}  # then the load is by puts into one region, without a JVM


class Crashing:
    """Start and kill runs of a project.

    Args:
        made: the project.
        killer: the process of kill_at.py.
        folder: for the folders of the runs.
        full: whether the runs do all that they do in production.
    """

    def __init__(self, made, killer, folder, full):
        self.made = made
        self._killer = killer
        self._folder = folder
        self._full = full

    def run(self, *options, **environment):
        """Complete a run, and return the release's ID."""
        return self.made.succeed("run", *options, processes=self._full, **environment).stdout.strip()

    def begin(self, point, *options, yarn=False, **environment):
        """Start a run, and return its process ID and its folder."""
        folder = tempfile.mkdtemp(dir=self._folder)
        run = {
            "point": point,
            "settings": str(self.made.path),
            "arguments": ["run", *options],
            "folder": folder,
            "environment": environment,
            "processes": self._full,
            "yarn": yarn or self._full,
            "silent_seconds": SILENT_SECONDS if self._full else 0.5,
        }
        print(json.dumps(run), file=self._killer.stdin, flush=True)
        return int(self._killer.stdout.readline()), Path(folder)

    def end(self):
        """Wait for the started run, and return its exit code."""
        return int(self._killer.stdout.readline())

    def crash(self, name):
        """Start a run that is killed at a point, and wait for its end."""
        options, environment = [], {}
        # The steps after the scoring do not depend on the runner, nor those after the load on the way of loading.
        if ORDER.index(name) > ORDER.index("scored") and not self._full:
            options = ["--runner", "local"]
            environment = {} if name == TAKEN_OVER else WITHOUT_COMMANDS
        _process, folder = self.begin(POINTS[name], *options, yarn=name == ON_YARN, **environment)
        assert self.end() == -signal.SIGKILL, (folder / "stderr").read_text()

    def run_after_a_crash(self):
        """Complete a run, which first has to find out that the run with the lease is dead."""
        result = self.made.succeed("run", processes=self._full)
        assert f"holds the lease; waiting {SILENT_SECONDS:g} s to see whether it is alive" in result.stderr
        return result.stdout.strip()

    def pointer_and_releases(self):
        """Return the pointer and the releases in HBase."""
        with Connection(self.made.settings.hbase.server(loading=True)) as connection:
            releases = Releases(connection, self.made.name)
            return releases.pointer(), releases.known()

    def lease(self):
        with Connection(self.made.settings.hbase.server(loading=True)) as connection:
            return connection.row(self.made.name, b"run")[b"r:run"].value

    def tables(self):
        with Connection(self.made.settings.hbase.server(loading=True)) as connection:
            names = map(bytes.decode, connection.tables())
            return {name.partition(".")[2] for name in names if name.startswith(f"{self.made.name}.")}

    def lookup(self, release):
        """Check that every lookup is answered from a release."""
        answers = self.made.get(*(f"order-{number:03}" for number in range(0, 400, 7)))
        assert {(answer["status"], answer["release"]) for answer in answers} == {("fresh", release)}


def assert_compared_in_the_job(made, before, after):
    """Check that the reducers compared the releases, with the result of reading both again."""
    folder = made.storage.release(after)
    names = {name for name in folder.storage.names(f"{folder.path}/hfiles") if name.endswith(".comparison.json")}
    assert names == {f"part-{part:05d}.comparison.json" for part in range(4)}
    in_job, afterwards = kept(folder), json.loads(made.succeed("compare", "--json", before, after).stdout)
    for comparison in (in_job, afterwards):
        for side in ("before", "after"):
            comparison[side]["mean"] = pytest.approx(comparison[side]["mean"])  # a sum depends on its order
    assert in_job == afterwards


@pytest.fixture(scope="module")
def crashing(project, tmp_path_factory, full):
    folder = tmp_path_factory.mktemp("orders")
    made = project((make_orders(folder) / "predictions.toml").read_text(), folder, yarn=full)
    killer = subprocess.Popen(
        [sys.executable, str(KILLER)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with killer:
        try:
            yield Crashing(made, killer, folder, full)
        finally:
            os.killpg(killer.pid, signal.SIGKILL)  # and all its runs


def test_a_run_killed_anywhere_leaves_the_served_release_and_the_next_run_succeeds(crashing, full):
    current = crashing.run() if full else crashing.run("--runner", "local", **WITHOUT_COMMANDS)
    for name in POINTS:
        if name in WITH_FULL and not full:
            continue
        crashing.crash(name)
        pointer, _releases = crashing.pointer_and_releases()
        if name == "the pointer is switched":
            assert (pointer.previous, pointer.current > current) == (current, True)
            current = pointer.current
        assert pointer.current == current, name
        crashing.lookup(current)
        if full:
            current = crashing.run_after_a_crash()
            crashing.lookup(current)
    previous, current = current, crashing.run() if full else crashing.run_after_a_crash()
    crashing.lookup(current)
    assert_compared_in_the_job(crashing.made, previous, current)
    # --clean shows and removes what the killed runs have left behind; the served and the previous release stay.
    unfinished = {
        release_id for release_id, release in crashing.pointer_and_releases()[1].items() if release.state == BUILDING
    }
    assert unfinished or full
    output = crashing.made.succeed("releases", "--clean", **AT_ONCE).stdout
    assert all(f"{release_id}: it was started but never loaded" in output for release_id in unfinished)
    pointer, releases = crashing.pointer_and_releases()
    retained = {current, previous}
    assert {pointer.current, pointer.previous} == retained
    storage = crashing.made.storage
    assert set(storage.names(storage.folder)) == retained
    assert crashing.tables() == retained
    assert {release_id for release_id, release in releases.items() if release.state != DROPPED} == retained
    assert not [
        name for release_id in retained for name in storage.names(f"{storage.folder}/{release_id}") if name[0] == "_"
    ]
    crashing.lookup(current)


def test_an_interrupted_run_ends_the_jvm_that_makes_its_table(crashing):
    with crashing.made.popen("run", "--runner", "local") as running:
        try:
            deadline = time.monotonic() + DEADLINE
            while not (jvms := splitters(running)):
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            running.terminate()
            assert running.wait(DEADLINE) == INTERRUPTED
        finally:
            running.kill()  # if it has not ended, it would hold the lease of the other tests
    assert not any(jvm.is_running() for jvm in jvms)
    assert crashing.lease() == b"{}"


def splitters(run):
    """Return the processes below a run that make a table; some may exit meanwhile."""
    with suppress(psutil.Error):
        children = psutil.Process(run.pid).children(recursive=True)
        return [child for child in children if "RegionSplitter" in " ".join(child.cmdline())]
    return []


def test_a_second_run_of_the_same_name_is_refused(crashing, full):
    environment = {} if full else WITHOUT_COMMANDS
    process, folder = crashing.begin("predictions.cli.run:run_score:hold", "--runner", "local", **environment)
    deadline = time.monotonic() + DEADLINE
    while not (folder / "work" / "held").exists():  # until it holds the lease
        assert time.monotonic() < deadline, (folder / "stderr").read_text()
        time.sleep(0.05)
    second = crashing.made.run("run")
    assert (second.returncode, f"another run (process {process} on " in second.stderr) == (3, True)
    assert f"started at {json.loads(crashing.lease())['since']}) is active; wait" in second.stderr
    assert f"waiting {SILENT_SECONDS:g} s to see" in second.stderr
    (folder / "work" / "go").touch()
    assert crashing.end() == 0, (folder / "stderr").read_text()
    assert crashing.pointer_and_releases()[0].current == (folder / "stdout").read_text().strip()
    assert crashing.lease() == b"{}"
