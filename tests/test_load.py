"""Loads by puts into the cluster's HBase: both runners, continued loads, refused rows, verification of every cell."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import xxhash
from conftest import CHECKOUT, SETTINGS, make_manifest, manifest_of
from inprocess import without

from loader.plan import Plan
from loader.puts import REJECTED, REJECTED_HEAD, PutLoad
from predictions.errors import InputError, RefusedError, VerificationError
from predictions.formats.id_digest import IdDigest
from predictions.formats.manifest import Export, Scored
from predictions.formats.names import part_name, release_table
from predictions.formats.prediction_line import MAX_CELL_BYTES, cells, parse_line
from predictions.formats.record_line import join_lines
from predictions.formats.row_key import record_id, row_keys, split_points
from predictions.hbase.connection import Connection
from predictions.hbase.releases import BUILDING, LOADED, Releases
from predictions.hbase.rows import Cell
from predictions.jobs import streaming
from predictions.progress import bar
from predictions.stages.load import How, load
from predictions.storage import ReleaseFolder

pytestmark = pytest.mark.cluster

POINTS = split_points(4)
SCORED = 1795366709000
DEADLINE = 120  # seconds; usually it takes one


def line(name, prediction=b"1", scored=SCORED):
    return b"\t".join([*row_keys([name]), prediction, b"0.83", b"4907185d0406025b", b"%d" % scored, b"\\N"])


def orders(number, **values):
    return [line(b"order-%03d" % order, **values) for order in range(number)]


def region(line, points=POINTS):
    return bisect_right(points, parse_line(line).row_key)


def expected(lines):
    parsed = map(parse_line, lines)
    return {line.row_key: {c: Cell(v, int(line.scored)) for c, v in cells(line).items()} for line in parsed}


class Release:
    """A release of handwritten prediction lines, its loads and its table."""

    def __init__(self, made, folder, no_hbase, points=POINTS):
        self.made, self.folder, self.points = made, folder, points
        # Without the command `hbase`, a table has one region, and is created within a second.
        self.no_hbase = {"PREDICTIONS_HADOOP_BIN": str(no_hbase)}
        hadoop = made.settings.hadoop.model_copy(update={"bin": no_hbase})
        self.settings = made.settings.model_copy(update={"hadoop": hadoop})
        self.table = release_table(made.name, folder.release)
        self.connection = Connection(self.settings.hbase.server())
        self.messages = []

    def put(self, lines):
        """Write prediction lines as if they had been scored, and return the lines of each part."""
        parts = [[] for _part in range(len(self.points) + 1)]
        for line in sorted(lines, key=lambda line: parse_line(line).row_key):
            parts[region(line, self.points)].append(line)
        for part, part_lines in enumerate(parts):
            with self.folder.create(self.part(part)) as file:
                file.write(join_lines(part_lines) if part_lines else b"")
        digest = IdDigest.of(record_id(parse_line(line).row_key) for line in lines)
        rows, points = len(lines), [point.decode() for point in self.points]
        scored = Scored(read=rows, scored=rows, rows=rows, id_digest=digest, split_points=points)
        export = Export(rows=rows, id_digest=digest)
        manifest = make_manifest(name=self.made.name, release=self.folder.release, export=export, scored=scored)
        self.folder.write_manifest(manifest)
        return parts

    def part(self, part):
        return f"{self.folder.path}/scored/{part_name(part)}"

    def load(self, how=How(), shown=bar, settings=None, processes=False):  # noqa: B008
        """Load the release; with processes, the progress bar is updated while they work."""
        with without(processes):
            folder = ReleaseFolder(self.folder.storage, self.folder.release)
            return load(settings or self.settings, folder, how, shown, self.messages.append)

    def run(self, command, *options, code=0):
        return self.made.succeed(command, "--release", self.folder.release, *options, code=code, **self.no_hbase)

    def cells(self):
        return {row.key: row.cells for row in chain.from_iterable(self.connection.scan(self.table, b"", b""))}

    def state(self):
        return Releases(self.connection, self.made.name).state(self.folder.release)

    def forget(self):
        """Mark the release as not loaded; its table stays."""
        row = {b"r:state": BUILDING.encode()}
        self.connection.put(self.made.name, b"release:" + self.folder.release.encode(), row)
        self.folder.write_manifest(replace(manifest_of(self.folder), loaded=None))

    def checkpoint_rows(self):
        prefix = f"load:{self.folder.release}".encode()
        rows = chain.from_iterable(self.connection.scan(self.made.name, prefix + b":", prefix + b";"))
        return {row.key: json.loads(row.cells[b"r:checkpoint"].value) for row in rows}

    def checkpoints(self):
        """Return the checkpoints by part."""
        return {int(key[-5:]): checkpoint for key, checkpoint in self.checkpoint_rows().items()}


class Recorder:
    """A progress bar that records the numbers of rows, and raises KeyboardInterrupt at a given number."""

    def __init__(self, until=float("inf")):
        self._until = until
        self.rows = []

    def __call__(self, label, unit):
        return nullcontext(self._note if label == "load" else lambda _done, _total: None)

    def _note(self, rows, _total):
        self.rows.append(rows)
        if rows >= self._until:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(project):
    return project(SETTINGS)


@pytest.fixture
def release(made, tmp_path):
    (tmp_path / "no-hbase").mkdir()
    release = Release(made, made.storage.new_release(), tmp_path / "no-hbase")
    with release.connection:
        Releases(release.connection, made.name).make_table()  # tests read checkpoints before a load
        yield release


def poll(condition):
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


# The job runs this instead of Python, with numpy and xxhash only. It loads in small batches, and the first attempt at
# part 1 is killed at its second checkpoint. It logs the offset at which each attempt starts and the path of HappyBase.
TASK = """
import os, runpy, signal, sys
import happybase
from loader import batches
from loader.checkpoints import Checkpoints
from predictions.task import environment as task

batches.BATCH_BYTES, read, write = 1000, Checkpoints.read, Checkpoints.write

def read_and_log(self, part):
    checkpoint = read(self, part)
    with open("{log}", "a") as log:
        print(part, task.attempt(), checkpoint.offset, happybase.__file__, file=log)
    return checkpoint

def write_and_die(self, part, checkpoint, *rest):
    write(self, part, checkpoint, *rest)
    if (part, task.attempt()) == (1, 0) and checkpoint.offset > 1500:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.read, Checkpoints.write = read_and_log, write_and_die
sys.argv = sys.argv[2:]
runpy.run_module("loader", run_name="__main__")
"""


def test_both_runners_make_the_same_table(release, made, tmp_path):
    odd_ids = [b"tab\\there", "é".encode(), b"x" * 2000, b"\\\\N", b"back\\\\slash"]
    lines = [*orders(400), *(line(name, b"\\t" + name, SCORED + number) for number, name in enumerate(odd_ids))]
    lines.append(b"%b:bad\t\\N\t\\N\t4907185d0406025b\t%d\tamount: not a number" % (b"9999", SCORED))
    release.put(lines)
    assert release.load(processes=True).rows == len(lines)
    assert release.cells() == expected(lines)  # each cell has the time of its own line
    assert release.checkpoints() == {}
    release.load()
    assert release.messages[-1] == f"release {release.folder.release} is already loaded"

    release.forget()
    release.load()
    assert release.cells() == expected(lines)

    by_job = Release(made, made.storage.new_release(), tmp_path, split_points(3))
    by_job.put(lines)
    (tmp_path / "environment").mkdir()
    for folder in (Path(library.__file__).parent for library in (np, xxhash)):
        for path in [folder, *folder.parent.glob(f"{folder.name}.libs")]:
            (tmp_path / "environment" / path.name).symlink_to(path)
    (tmp_path / "task.py").write_text(TASK.format(log=tmp_path / "log"))
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}/environment" exec {sys.executable} -S {tmp_path}/task.py "$@"\n'
    )
    python.chmod(0o755)
    options = {"python": str(python), "properties": {"mapreduce.map.speculative": "true"}}
    hadoop = made.settings.hadoop.model_copy(update=options)
    by_job.load(How(runner="hadoop", processes=2), settings=made.settings.model_copy(update={"hadoop": hadoop}))
    assert by_job.cells() == release.cells()
    log = [entry.split() for entry in (tmp_path / "log").read_text().splitlines()]
    assert {int(part) for part, _attempt, _offset, _module in log} == {0, 1, 2}
    assert {module.rpartition("/lib/")[2] for *_entry, module in log} == {"happybase/__init__.py"}
    assert min(int(offset) for part, attempt, offset, _module in log if part == "1" and attempt != "0") > 1500
    by_job.run("verify", "--full")
    by_job.connection.close()


def test_a_job_that_may_run_all_its_tasks_at_once_has_no_limit(release, monkeypatch):
    """With a limit, the ApplicationMaster would return the container for a second attempt, and never ask again."""
    jobs = []
    monkeypatch.setattr(streaming, "usable_nodes", lambda _hadoop: None)
    monkeypatch.setattr(streaming.JobClient, "run", lambda _client, job, _progress: jobs.append(job))
    plan = Plan(release.settings.hbase.server(), release.made.name, release.folder.release, "load", ["8"])
    Releases(release.connection, release.made.name).make_table()
    for tasks in (None, 1, 2, 3):
        load = PutLoad(release.made.settings, release.folder, in_job=True, processes=tasks)
        load.load(release.connection, plan, 0, bar, print)
    assert [job.properties.get("mapreduce.job.running.map.limit") for job in jobs] == [None, "1", None, None]


def test_an_interrupted_load_continues_from_its_checkpoints(release):
    lines = orders(60, prediction=b"x" * 60_000)  # a batch has four lines
    release.put(lines)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **release.no_hbase}
    command = [sys.executable, "-m", "predictions", "--settings", str(release.made.path)]
    running = subprocess.Popen(
        [*command, "load", "--processes", "2", "--rate", "4"], env=environment, stderr=subprocess.PIPE, text=True
    )
    poll(lambda: running.poll() is not None or release.checkpoints())
    running.send_signal(signal.SIGTERM)
    _stdout, stderr = running.communicate(timeout=DEADLINE)
    assert (running.returncode, stderr.splitlines()[-1]) == (130, "predictions: interrupted")
    rows_before = {part: checkpoint["rows"] for part, checkpoint in release.checkpoints().items()}
    assert 0 < sum(rows_before.values()) < 60

    recorder = Recorder()
    release.load(shown=recorder)
    assert sum(rows_before.values()) <= recorder.rows[0] < 60  # one batch may have been on its way to HBase
    assert recorder.rows == sorted(recorder.rows)  # no part starts again from its beginning
    assert release.cells() == expected(lines)
    verified = release.run("verify", "--full")
    assert (verified.stdout, release.checkpoints()) == ("", {})


def test_a_table_that_was_dropped_is_made_anew_and_loaded_whole(release):
    lines = orders(40, prediction=b"x" * 60_000)
    parts = release.put(lines)
    with pytest.raises(KeyboardInterrupt):
        release.load(How(processes=1), Recorder(len(parts[0]) + 4), processes=True)
    assert release.checkpoints()[0]["rows"] == len(parts[0])
    release.connection.delete_table(release.table)
    release.load()
    assert release.cells() == expected(lines)


def test_a_checkpoint_that_claims_missing_rows_is_detected(release):
    lines = orders(40)
    parts = release.put(lines)
    with pytest.raises(KeyboardInterrupt):
        release.load(How(processes=1), Recorder(1))
    ids = [record_id(parse_line(line).row_key) for line in parts[1]]
    claim = {"offset": len(join_lines(parts[1])), "rows": len(ids), "id_digest": IdDigest.of(ids), "complete": True}
    [key, *_others] = release.checkpoint_rows()
    cells = {b"r:checkpoint": json.dumps(claim).encode()}
    release.connection.put(release.made.name, key[:-1] + b"1", cells)
    with pytest.raises(VerificationError, match=rf"part-00001 .*: the table holds \d+ rows, {len(ids)} were loaded: "):
        release.load()
    assert (release.state(), manifest_of(release.folder).loaded) == (BUILDING, None)
    release.load()
    assert release.cells() == expected(lines)


def test_a_copy_of_another_part_is_refused(release):
    parts = release.put(orders(40))
    release.folder.storage.fs.pipe_file(release.part(1), join_lines(parts[0]))
    message = rf"^part-00001: row key {re.escape(repr(parse_line(parts[0][0]).row_key))} belongs to another part"
    with pytest.raises(InputError, match=message):
        release.load()
    assert release.state() == BUILDING
    assert "is not loaded" in release.run("activate", code=2).stderr


def test_a_part_that_was_cut_off_is_refused_before_anything_is_begun(release):
    parts = release.put(orders(40))
    release.folder.storage.fs.pipe_file(release.part(2), join_lines(parts[2])[:-2])  # the last `\N` is now `\`
    with pytest.raises(InputError, match="part-00002: it ends in the middle of a line"):
        release.load()
    assert release.state() is None


def test_rows_that_hbase_refuses_are_kept_aside_and_all_others_are_loaded(release):
    lines = orders(60)
    poison = line(b"poison", b"x" * MAX_CELL_BYTES)
    long = line(b"k" * (1 << 15))
    parts = release.put([*lines, poison, long])
    good = [sum(line not in (poison, long) for line in part) for part in parts]
    with pytest.raises(KeyboardInterrupt):
        release.load(How(processes=1), Recorder(sum(good[: region(poison) + 1])))
    assert release.checkpoints()[region(poison)]["rejected"] >= 1

    refused = release.run("load", code=3)
    assert refused.stderr.splitlines()[-1].startswith(
        "predictions: HBase rejected 2 rows and accepted all others; the first reason: "
    )
    rejected = release.folder.read(REJECTED)
    assert rejected.startswith(REJECTED_HEAD)
    reasons = dict(entry.split(b"\t") for entry in rejected.removeprefix(REJECTED_HEAD).splitlines())
    assert reasons == {
        b"poison": b"IllegalArgumentException: KeyValue size too large",
        b"k" * (1 << 15): b"Internal error processing mutateRowsTs",
    }
    assert release.cells() == expected(lines)
    assert "is not loaded" in release.run("activate", code=2).stderr
    assert region(poison) not in release.checkpoints()
    with pytest.raises(RefusedError, match="HBase rejected 2 rows"):
        release.load()  # tries the refused rows again

    mended = [*lines, line(b"poison")]
    release.put(mended)
    release.load()
    assert release.cells() == expected(mended)
    assert not release.folder.has(REJECTED)
    assert (release.state(), release.checkpoints()) == (LOADED, {})
    release.run("verify", "--full")


def test_verify_finds_missing_extra_and_different_rows(release):
    lines = orders(400)
    parts = release.put(lines)
    release.load()
    speed = r"in \d+\.\d s \([\d,]+ rows per second\)$"
    table = f"400 rows of table {release.table}: read "
    quick = release.run("verify").stderr.splitlines()[-1]
    assert re.match(rf"{table}row keys only, up to \d+ regions at once, {speed}", quick)
    full = release.run("verify", "--full", "--processes", "3").stderr.splitlines()[-1]
    assert re.match(rf"{table}every cell \(1,200\) and the .* lines, up to 3 regions at once, {speed}", full)

    keys = [[parse_line(line).row_key for line in part] for part in parts]
    gone = keys[0][:25]
    for key in gone:
        release.connection.delete_row(release.table, key)
    release.connection.put(release.table, b"4000:extra", {b"p:prediction": b"1"}, SCORED)
    release.connection.delete_row(release.table, keys[1][-1])  # so that the number of rows is right
    release.connection.put(release.table, keys[2][0], {b"p:prediction": b"2"}, SCORED)
    release.connection.put(release.table, keys[3][-1], {b"p:probability": b"0.83"}, SCORED + 1)

    quick = release.run("verify", code=5)
    first, second = quick.stdout.splitlines()
    rows = len(keys[0])
    assert (
        first
        == f"part-00000 (row keys from the first to 4000): the table holds {rows - 25:,} rows, {rows:,} were loaded"
    )
    assert second.startswith("part-00001 (row keys 4000 to 8000): the table holds ")
    assert second.endswith(" rows, but not those that were loaded")
    assert quick.stderr.endswith(f"predictions: the table of release {release.folder.release} is not what was scored\n")

    full = release.run("verify", "--full", code=5)
    assert full.stdout.splitlines() == [
        first,
        second,
        *(f"missing: {key[5:].decode()}" for key in gone[:20]),
        "extra: extra",
        f"different: {keys[2][0][5:].decode()}: p:prediction is b'2' at {SCORED}, the line has b'1' at {SCORED}",
        f"different: {keys[3][-1][5:].decode()}: p:probability is b'0.83' at {SCORED + 1}, the line has b'0.83' at {SCORED}",
    ]
    assert full.stderr.endswith("is not what was scored: 26 missing, 1 extra, 2 different\n")
