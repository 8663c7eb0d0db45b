"""Loads of HFiles into the cluster's HBase: the same table as by puts, also after interruptions and damage."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain

import psutil
import pytest
from conftest import CHECKOUT, make_orders, manifest_of, properties
from hbase_admin import make_table
from inprocess import without

from predictions.formats.hfile.region_file import hfile_name
from predictions.formats.names import release_table
from predictions.formats.prediction_line import FAMILY
from predictions.formats.row_key import split_points
from predictions.hbase.connection import Connection
from predictions.hbase.releases import BUILDING, Releases
from predictions.progress import bar
from predictions.stages.load import How, load

pytestmark = pytest.mark.cluster

DEADLINE = 120  # seconds; usually it takes a few


class Scored:
    """A release scored by a job that wrote its HFiles with `hadoop fs`, and its table."""

    def __init__(self, made, cluster, trained):
        self.made, self._cluster = made, cluster
        self.folder = made.take(trained)
        home = {"HADOOP_COMMON_HOME": str(CHECKOUT / "hadoop")}  # as a NodeManager sets it for tasks
        made.succeed("score", **properties(**{"dfs.namenode.http-address": "127.0.0.1:1"}), **home)
        self.table = release_table(made.name, self.folder.release)
        self.connection = Connection(made.settings.hbase.server(loading=True))
        self.job_files = {
            name: self.folder.read(f"hfiles/{name}") for name in [*self.facts(), *map(hfile_name, range(4))]
        }

    def load(self, how=How(), shown=bar):  # noqa: B008
        with without():
            return load(self.made.settings, self.folder, how, shown, print)

    def cells(self):
        return {row.key: row.cells for row in chain.from_iterable(self.connection.scan(self.table, b"", b""))}

    def files(self):
        return sorted(name for name in self.folder.storage.names(f"{self.folder.path}/hfiles/p"))

    def facts(self):
        """Return the facts of each HFile, which stay when HBase has moved the HFile."""
        names = self.folder.storage.names(f"{self.folder.path}/hfiles")
        return {name: self.folder.read(f"hfiles/{name}") for name in names if name.startswith("part-")}

    def forget(self):
        """Restore the state of a `load` that was killed just before its end."""
        row = {b"r:state": BUILDING.encode()}
        self.connection.put(self.made.name, b"release:" + self.folder.release.encode(), row)
        self.folder.write_manifest(replace(manifest_of(self.folder), loaded=None))

    def drop(self):
        self.forget()
        if self.table.encode() in self.connection.tables():
            self.connection.delete_table(self.table)

    def begin(self):
        """Restore the job's files, and the state of a `load` killed when it had created the table: `hbase` is slow."""
        self.drop()
        self.folder.remove("hfiles")
        for name, data in self.job_files.items():
            self.folder.storage.fs.pipe_file(f"{self.folder.path}/hfiles/{name}", data)
        Releases(self.connection, self.made.name).start_load(self.folder.release)
        make_table(self._cluster, self.table, FAMILY, split_points(4))
        while len(self.connection.regions(self.table)) < 4:
            time.sleep(0.02)

    def is_whole(self):
        return self.made.succeed("verify", "--full").stdout == ""


@pytest.fixture(scope="module")
def release(project, cluster, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    release = Scored(project((make_orders(folder) / "predictions.toml").read_text(), folder), cluster, trained)
    with release.connection:
        Releases(release.connection, release.made.name).make_table()
        yield release


PARTS = [f"part-{part:05d}" for part in range(4)]


def test_every_way_gives_the_same_table_cell_for_cell(release):
    release.begin()
    assert release.files() == PARTS
    release.made.succeed("load")
    assert release.files() == []
    assert release.is_whole()
    by_hfiles = release.cells()
    assert len(by_hfiles) == 400
    for way in ["--via", "puts"], ["--runner", "hadoop"]:  # from the job's packed lines
        release.begin()
        release.made.succeed("load", *way)
        assert release.cells() == by_hfiles


def test_files_that_were_moved_are_not_missed_and_those_of_a_dropped_table_are_written_again(release):
    release.begin()
    release.load(How(via="hfiles"))
    release.forget()
    started = manifest_of(release.folder)
    release.load()  # finds every row in place
    assert (release.files(), started.loaded, release.is_whole()) == ([], None, True)
    release.drop()
    release.load()  # creates the table, too
    assert release.is_whole()


def test_some_files_moved_and_some_not(release):
    """One file is loaded, one still waits, and two are missing."""
    release.begin()
    fs, path = release.folder.storage.fs, f"{release.folder.path}/hfiles/p"
    waiting = fs.cat_file(f"{path}/part-00002")
    for part in (0, 2, 3):
        fs.rm(f"{path}/{PARTS[part]}")
    tool = ["org.apache.hadoop.hbase.tool.BulkLoadHFilesTool", "-Dcreate.table=no"]
    hbase = release.made.settings.hadoop.bin / "hbase"
    subprocess.run([hbase, *tool, f"hdfs://{release.folder.path}/hfiles", release.table], check=True)
    assert 0 < len(release.cells()) < 200
    fs.pipe_file(f"{path}/part-00002", waiting)
    release.load()
    assert release.is_whole()


def commands_below(process):
    """Yield the command lines of a process's descendants; some may exit meanwhile."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            yield " ".join(child.cmdline())


def test_killed_while_hbase_moves_the_files(release):
    release.begin()
    command = [sys.executable, "-m", "predictions", "--settings", str(release.made.path), "load"]
    running = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE
    while not any("BulkLoadHFilesTool" in command for command in commands_below(running)):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    release.made.succeed("load")  # at once: the `hbase` command of the killed load still runs
    assert release.is_whole()


def test_a_file_that_is_not_what_was_written_is_refused_before_hbase_has_any(release):
    release.begin()
    path = f"{release.folder.path}/hfiles/p/part-00002"
    fs = release.folder.storage.fs
    good = fs.cat_file(path)
    assert release.files() == PARTS
    fs.pipe_file(path, good[:500] + bytes([good[500] ^ 1]) + good[501:])
    refused = release.made.succeed("load", code=5)
    assert f"{path}: its SHA-256 is not that of the file as written; remove the file and load again" in refused.stderr
    assert release.files() == PARTS
    fs.pipe_file(path, fs.cat_file(f"{release.folder.path}/hfiles/p/part-00001"))
    assert "part-00002: its SHA-256 is not that of the file as written" in release.made.succeed("load", code=5).stderr
    fs.pipe_file(f"{release.folder.path}/hfiles/p/part-00009", good)
    assert "part-00009: unexpected file, the release has 4 regions" in release.made.succeed("load", code=2).stderr
    fs.rm(f"{release.folder.path}/hfiles/p/part-00009")
    fs.rm(path)
    assert release.cells() == {}
    release.load()
    assert release.is_whole()


@contextmanager
def interrupting(_label, _unit):
    """A progress bar that raises KeyboardInterrupt just before HBase gets the files."""

    def note(rows, total):
        if rows == total:
            raise KeyboardInterrupt

    yield note


def test_impossible_options_are_refused(release, tmp_path):
    release.forget()
    for options in (["--rate", "5"], ["--runner", "hadoop"]):
        refused = release.made.succeed("load", "--via", "hfiles", *options, code=2)
        assert "--runner and --rate are for puts" in refused.stderr
    (tmp_path / "no-hbase").mkdir()
    refused = release.made.run("load", "--via", "hfiles", PREDICTIONS_HADOOP_BIN=str(tmp_path / "no-hbase"))
    assert (refused.returncode, "use --via puts" in refused.stderr) == (2, True)


def test_without_webhdfs_the_reducers_files_go_by_hadoop(release):
    """All tests of this file load HFiles written by `hadoop fs`; `load` itself writes the same."""
    release.begin()
    assert release.files() == PARTS
    release.folder.remove("hfiles")
    with pytest.raises(KeyboardInterrupt):
        release.load(shown=interrupting)  # it ends before HBase gets any
    assert release.files() == PARTS
    assert len(facts := release.facts()) == 4
    assert {name: release.job_files[name] for name in facts} == facts
