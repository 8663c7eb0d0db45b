"""The driver of `predictions run`, killed at every step: readers keep what they have, and the next run goes through.

What is killed is the driver: in the suite its job is YARN's only where it is killed while that runs, it starts no other
process where it is not killed beside one, and does not wait long for the lease of one that is dead. With --full it does
all that it does in production, and a whole run follows each crash.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, make_orders

from predictions.hbase.connection import Connection
from predictions.hbase.lease import SILENT_SECONDS
from predictions.hbase.releases import BUILDING, DROPPED, Releases
from predictions.stages.compare import kept

pytestmark = pytest.mark.cluster

KILLER = Path(__file__).parent / "kill_at.py"
DEADLINE = 300  # seconds, of a run
AT_ONCE = {"PREDICTIONS_RETENTION_GRACE_HOURS": "0", "PREDICTIONS_RETENTION_KEEP": "1"}

# In the order in which a run comes to them. Each run of the suite is killed one point later than the one before it, so
# that it must get over what that has left.
POINTS = {
    "the export is being written": "predictions.storage:ReleaseFolder.create:exit:/_export.",
    "exported, without a manifest": "predictions.storage:ReleaseFolder.write_manifest:enter",
    "the model is written, not renamed": "predictions.storage:ReleaseFolder._rename:enter:/model",
    "what the job ships is there": "predictions.stages.score_hadoop:ScoreJob.ship:exit",
    "the job is running": "predictions.jobs.streaming:JobClient.run:progress",
    "the job is done, its lines are not renamed": "predictions.jobs.streaming:JobClient.run:exit",
    "the HFiles are renamed, not the lines": "predictions.storage:ReleaseFolder.take:exit",
    "scored": "predictions.storage:ReleaseFolder._rename:exit:/scored",
    "the release is claimed, there is no table": "predictions.hbase.releases:Releases.claim:exit",
    "the table is made, and empty": "predictions.stages.load:make_table:exit",
    "HBase has been handed the files": "loader.bulk:_bulk_load:exit",
    "the manifest says loaded, HBase does not": "predictions.hbase.releases:Releases.finish:enter",
    "the gates have spoken, nothing is switched": "predictions.hbase.releases:Releases._switch:enter",
    "switched": "predictions.hbase.releases:Releases._switch:exit",
}
WITH_FULL = {"the HFiles are renamed, not the lines"}  # much the same as the point before it, and a job
ON_YARN = "the job is running"
HANDED_OVER = "HBase has been handed the files"
ORDER = list(POINTS)
WITHOUT_COMMANDS = {"PREDICTIONS_HADOOP_BIN": "/nowhere"}  # the load is by puts into one region, and takes no JVM


class Crashing:
    """Predictions of the orders whose runs are killed.

    Args:
        made: the orders.
        killer: the process of kill_at.py.
        folder: for the runs' folders.
        full: whether the runs do all that they do in production.
    """

    def __init__(self, made, killer, folder, full):
        self.made = made
        self._killer = killer
        self._folder = folder
        self._full = full

    def run(self, *options, **environment):
        """Run to the end, and return the release's ID."""
        return self.made.succeed("run", *options, processes=self._full, **environment).stdout.strip()

    def begin(self, point, *options, yarn=False, **environment):
        """Begin a run, and return its process ID and its folder."""
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
        """Wait for the run that was begun, and return its exit code."""
        return int(self._killer.stdout.readline())

    def crash(self, name):
        """Run until a point is reached."""
        options, environment = [], {}
        # What comes after the scoring is the same whoever has scored, and so is what comes after the load.
        if ORDER.index(name) > ORDER.index("scored") and not self._full:
            options = ["--runner", "local"]
            environment = {} if name == HANDED_OVER else WITHOUT_COMMANDS
        _process, folder = self.begin(POINTS[name], *options, yarn=name == ON_YARN, **environment)
        assert self.end() == -signal.SIGKILL, (folder / "stderr").read_text()

    def run_after_a_crash(self):
        """Run to the end, once the lease of the run that was killed is seen to be nobody's."""
        again = self.made.succeed("run", processes=self._full)
        assert f"holds the lease; waiting {SILENT_SECONDS:g} s to see whether it is alive" in again.stderr
        return again.stdout.strip()

    def known(self):
        """The pointer, and what HBase knows of the releases."""
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
        """Every record is answered, all of them from one release."""
        answers = self.made.get(*(f"order-{number:03}" for number in range(0, 400, 7)))
        assert {(answer["status"], answer["release"]) for answer in answers} == {("fresh", release)}


def assert_compared_in_the_job(made, before, after):
    """The reducers have compared, and found what is found by reading both releases again."""
    folder = made.storage.release(after)
    found = {name for name in folder.storage.names(f"{folder.path}/hfiles") if name.endswith(".comparison.json")}
    assert found == {f"part-{part:05d}.comparison.json" for part in range(4)}
    in_job, again = kept(folder), json.loads(made.succeed("compare", "--json", before, after).stdout)
    for each in (in_job, again):
        for side in ("before", "after"):
            each[side]["mean"] = pytest.approx(each[side]["mean"])  # a sum depends on its order
    assert in_job == again


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
            os.killpg(killer.pid, signal.SIGKILL)  # with whatever was left of its runs


def test_a_run_killed_anywhere_leaves_readers_what_they_had_and_the_next_run_goes_through(crashing, full):
    current = crashing.run() if full else crashing.run("--runner", "local", **WITHOUT_COMMANDS)
    for name in POINTS:
        if name in WITH_FULL and not full:
            continue
        crashing.crash(name)
        pointer, _known = crashing.known()
        if name == "switched":
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
    # What was left of the runs is found, shown and removed; what is served stays, and so does the way back.
    begun = {release for release, known in crashing.known()[1].items() if known.state == BUILDING}
    assert begun or full
    shown = crashing.made.succeed("releases", "--clean", **AT_ONCE).stdout
    assert all(f"{release}: it was begun and never loaded" in shown for release in begun)
    pointer, known = crashing.known()
    kept = {current, previous}
    assert {pointer.current, pointer.previous} == kept
    storage = crashing.made.storage
    assert set(storage.names(storage.folder)) == kept
    assert crashing.tables() == kept
    assert {release for release, each in known.items() if each.state != DROPPED} == kept
    assert not [name for release in kept for name in storage.names(f"{storage.folder}/{release}") if name[0] == "_"]
    crashing.lookup(current)


def test_of_two_runs_at_once_the_second_is_told(crashing, full):
    cheap = {} if full else WITHOUT_COMMANDS
    process, folder = crashing.begin("predictions.cli.run:run_score:hold", "--runner", "local", **cheap)
    deadline = time.monotonic() + DEADLINE
    while not (folder / "work" / "held").exists():  # it has the lease, and keeps it
        assert time.monotonic() < deadline, (folder / "stderr").read_text()
        time.sleep(0.05)
    second = crashing.made.run("run")
    assert (second.returncode, f"another run (process {process} on " in second.stderr) == (3, True)
    assert f"started at {json.loads(crashing.lease())['since']}) is active; wait" in second.stderr
    assert f"waiting {SILENT_SECONDS:g} s to see" in second.stderr
    (folder / "work" / "go").touch()
    assert crashing.end() == 0, (folder / "stderr").read_text()
    assert crashing.known()[0].current == (folder / "stdout").read_text().strip()
    assert crashing.lease() == b"{}"
