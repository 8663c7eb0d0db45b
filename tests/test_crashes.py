"""The driver of `predictions run`, killed at every step: readers keep what they have, and the next run goes through."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT, make_orders

from loader.connection import Connection
from predictions.compare import kept
from predictions.lease import SILENT_SECONDS
from predictions.pointer import BUILDING, DROPPED, Releases

pytestmark = pytest.mark.cluster

KILLER = Path(__file__).parent / "kill_at.py"
AT_ONCE = {"PREDICTIONS_RETENTION_GRACE_HOURS": "0", "PREDICTIONS_RETENTION_KEEP": "1"}

# In the order in which a run comes to them. Each run of the suite is killed one point later than the one before it, so
# that it must get over what that has left.
POINTS = {
    "the export is being written": "predictions.storage:ReleaseFolder.create:exit:/_export.",
    "exported, without a manifest": "predictions.storage:ReleaseFolder.write_manifest:enter",
    "the model is written, not renamed": "predictions.storage:ReleaseFolder._rename:enter:/model",
    "what the job ships is there": "predictions.score_hadoop:ScoreJob.ship:exit",
    "the job is running": "predictions.job:JobClient.run:progress",
    "the job is done, its lines are not renamed": "predictions.job:JobClient.run:exit",
    "the HFiles are renamed, not the lines": "predictions.storage:ReleaseFolder.take:exit",
    "scored": "predictions.storage:ReleaseFolder._rename:exit:/scored",
    "the release is claimed, there is no table": "predictions.pointer:Releases.claim:exit",
    "the table is made, and empty": "loader.tables:make_table:exit",
    "HBase has been handed the files": "predictions.load_hfiles:_bulk_load:exit",
    "the manifest says loaded, HBase does not": "predictions.pointer:Releases.finish:enter",
    "the gates have spoken, nothing is switched": "predictions.pointer:Releases._switch:enter",
    "switched": "predictions.pointer:Releases._switch:exit",
}
WITH_FULL = {  # beside a point that is much the same
    "exported, without a manifest",
    "what the job ships is there",
    "the HFiles are renamed, not the lines",
    "the table is made, and empty",
}


class Crashing:
    """Predictions of the orders whose runs are killed."""

    def __init__(self, made):
        self.made = made

    def run(self):
        """Run to the end, and return the release's ID."""
        return self.made.succeed("run").stdout.strip()

    def crash(self, point, *options):
        """Run until a point is reached."""
        command = [sys.executable, str(KILLER), point, "--settings", str(self.made.path), "run", *options]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

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
def crashing(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    return Crashing(project((make_orders(folder) / "predictions.toml").read_text(), folder))


def test_a_run_killed_anywhere_leaves_readers_what_they_had_and_the_next_run_goes_through(crashing, full):
    current, is_scored = crashing.run(), False
    for name, point in POINTS.items():
        if name in WITH_FULL and not full:
            continue
        # What comes after the scoring is the same whoever has scored; without a job it comes sooner.
        options = ["--runner", "local"] if is_scored and not full else []
        crashing.crash(point, *options)
        is_scored |= name == "scored"
        pointer, _known = crashing.known()
        if name == "switched":
            assert (pointer.previous, pointer.current > current) == (current, True)
            current = pointer.current
        assert pointer.current == current, name
        crashing.lookup(current)
        if full:
            again = crashing.made.succeed("run")
            assert f"has not ended; whether it is alive shows within {SILENT_SECONDS:g} s" in again.stderr
            current = again.stdout.strip()
            crashing.lookup(current)
    previous, current = current, crashing.run()
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


def test_of_two_runs_at_once_the_second_is_told(crashing):
    first = subprocess.Popen(
        [sys.executable, "-m", "predictions", "--settings", str(crashing.made.path), "run"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stderr is not None
        assert any("exported" in line for line in first.stderr)  # it has the lease
        second = crashing.made.run("run")
        assert (second.returncode, f"a run by process {first.pid} of" in second.stderr) == (3, True)
        assert f"begun at {json.loads(crashing.lease())['since']}, is under way; wait" in second.stderr
        assert f"shows within {SILENT_SECONDS:g} s" in second.stderr
        released, said = first.communicate(timeout=300)
        assert first.returncode == 0, said
    finally:
        first.kill()
        first.wait()
    assert crashing.known()[0].current == released.strip()
    assert crashing.lease() == b"{}"
