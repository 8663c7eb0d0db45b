"""Loads of HFiles into the cluster's HBase: the same table as by puts, also after interruptions and damage.

The HFiles and their facts are those of a job that had to use `hadoop fs`, so its facts have no HDFS checksums; they are
added here, unless a test wants none.
"""

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
from hbase_admin import make_table, split_region
from inprocess import without

from loader import bulk
from loader.plan import Plan
from loader.proof import prove
from predictions.errors import VerificationError
from predictions.formats import document
from predictions.formats.hfile.region_file import RegionFacts, facts_name, hfile_name
from predictions.formats.names import release_table
from predictions.formats.prediction_line import FAMILY
from predictions.formats.row_key import split_points
from predictions.hbase.connection import Connection
from predictions.hbase.releases import BUILDING, LOADED, Releases
from predictions.progress import bar
from predictions.stages.load import How, load, table_ahead
from predictions.storage import Storage

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
        self.said = []

    def load(self, how=How(), shown=bar):  # noqa: B008
        self.said.clear()
        with without():
            return load(self.made.settings, self.folder, how, shown, self.said.append)

    def plan(self):
        points = [point.decode() for point in split_points(4)]
        return Plan(self.made.settings.hbase.server(loading=True), self.made.name, self.folder.release, "", points)

    def prove(self, **options):
        """Return the proof of the table, with the facts in the release's folder."""
        facts = {part: document.read(RegionFacts, self.facts()[facts_name(part)], "facts") for part in range(4)}
        given = {"storage": self.folder.storage, "root": "/hbase"} | options
        return prove(self.plan(), **given, facts=facts)

    def region_file(self, part):
        """Return the path of the one file of a region in HBase's folder."""
        name = self.connection.regions(self.table)[part].encoded_name
        [path] = self.folder.storage.fs.ls(f"/hbase/data/default/{self.table}/{name}/p", detail=False)
        return path

    def state(self):
        """Return what no failed load may change: the pointer, and that this release cannot be served."""
        releases = Releases(self.connection, self.made.name)
        return releases.pointer(), releases.state(self.folder.release)

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

    def begin(self, checksums=True):
        """Restore the job's files, and the state of a `load` killed when it had created the table: `hbase` is slow."""
        self.drop()
        self.folder.remove("hfiles")
        storage, folder = self.folder.storage, f"{self.folder.path}/hfiles"
        for name, data in self.job_files.items():
            storage.fs.pipe_file(f"{folder}/{name}", data)
        for part in range(4) if checksums else ():
            facts = document.read(RegionFacts, self.job_files[facts_name(part)], "facts")
            assert facts.hdfs_checksum == ""
            facts = replace(facts, hdfs_checksum=storage.checksum(f"{folder}/{hfile_name(part)}"))
            storage.fs.pipe_file(f"{folder}/{facts_name(part)}", document.to_file(facts))
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
    proved = "and proved 4 of 4 regions by the checksums of their files"
    assert proved in release.made.succeed("load").stderr
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
    assert release.load().proved == 4  # finds every file in place
    assert (release.files(), started.loaded, release.said, release.is_whole()) == ([], None, [], True)
    release.forget()
    counted = release.made.succeed("load", PREDICTIONS_HBASE_ROOT="/elsewhere").stderr  # finds every row in place
    assert "counting the rows of 4 of 4 regions (part-00000: /elsewhere/data/default/" in counted
    assert "and counted them" in counted
    release.drop()
    assert release.load().proved == 4  # creates the table, too
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


@pytest.mark.parametrize("checksums", [True, False])
def test_a_file_that_is_not_what_was_written_is_refused_before_hbase_has_any(release, checksums):
    release.begin(checksums)
    before = release.state()
    path = f"{release.folder.path}/hfiles/p/part-00002"
    fs = release.folder.storage.fs
    good = fs.cat_file(path)
    assert release.files() == PARTS
    other = fs.cat_file(f"{release.folder.path}/hfiles/p/part-00001")
    for damaged in flipped(good), good[:-100], other:
        fs.pipe_file(path, damaged)
        refused = release.made.succeed("load", code=5)
        assert f"{path}: its SHA-256 is not that of the file as written; remove the file and load" in refused.stderr
        assert (release.files(), release.state()) == (PARTS, before)
    fs.pipe_file(f"{release.folder.path}/hfiles/p/part-00009", good)
    assert "part-00009: unexpected file, the release has 4 regions" in release.made.succeed("load", code=2).stderr
    fs.rm(f"{release.folder.path}/hfiles/p/part-00009")
    fs.rm(path)
    assert release.cells() == {}
    release.load()
    assert release.is_whole()


def flipped(data):
    """Return the bytes of an HFile with one bit of a cell changed."""
    return data[:500] + bytes([data[500] ^ 1]) + data[501:]


def test_a_file_that_is_as_written_is_not_read_again(release, monkeypatch):
    release.begin()
    monkeypatch.setattr(bulk, "_check", None)
    with pytest.raises(KeyboardInterrupt):
        release.load(shown=interrupting)  # it ends before HBase gets any
    assert release.files() == PARTS


class Meddling:
    """Load a release while something happens just before, or just after, HBase takes the files over."""

    def __init__(self, release, monkeypatch):
        self._release, self._patch, self._bulk_load = release, monkeypatch, bulk._bulk_load

    def load(self, before=lambda: None, after=lambda: None):
        def bulk_load(*arguments, **named):
            before()
            self._bulk_load(*arguments, **named)
            after()

        self._patch.setattr(bulk, "_bulk_load", bulk_load)
        return self._release.load()


@pytest.fixture
def meddling(release, monkeypatch):
    release.begin()
    return Meddling(release, monkeypatch)


def test_files_that_change_after_the_check_are_noticed(release, meddling):
    """One is rewritten and one removed before HBase has them, and one is handed over twice: all three are named."""
    fs, folder = release.folder.storage.fs, f"{release.folder.path}/hfiles/p"
    data, before = {part: release.job_files[hfile_name(part)] for part in range(4)}, release.state()

    def load_again():
        fs.pipe_file(f"{folder}/part-00003", data[3])
        meddling._bulk_load(release.made.settings, release.folder, release.plan(), is_last=True)

    def change():
        fs.pipe_file(f"{folder}/part-00001", flipped(data[1]))
        fs.rm(f"{folder}/part-00002")

    with pytest.raises(VerificationError) as raised:
        meddling.load(change, load_again)
    for message in (
        "p/part-00001: HBase's file /hbase/",
        "part-00002 (row keys 8000 to c000): the table holds 0 rows",
        "p/part-00003: HBase has it 2 times, in /hbase/data/default/",
        "the table was deleted; load the release again",
    ):
        assert message in str(raised.value)
    assert (release.table.encode() in release.connection.tables(), release.state()) == (False, before)


def test_a_table_that_was_made_ahead_with_other_regions_is_made_again(release):
    """The scoring of its run failed, and was repeated with another `hbase.regions`."""
    release.begin()
    release.connection.delete_table(release.table)
    hbase = release.made.settings.hbase.model_copy(update={"regions": 2})
    settings = release.made.settings.model_copy(update={"hbase": hbase})
    with table_ahead(settings, release.folder.release, release.said.append):
        pass
    assert len(release.connection.regions(release.table)) == 2
    assert release.load().proved == 4
    starts = [region.start for region in release.connection.regions(release.table)]
    assert (starts, release.said) == ([b"", *split_points(4)], [])
    assert release.is_whole()


def test_a_table_that_another_load_has_proved_in_the_meantime_is_kept(release, meddling):
    """That load did not find a file, which HBase was just moving for the first one, and wrote it again."""
    fs, path = release.folder.storage.fs, f"{release.folder.path}/hfiles/p/part-00001"

    def load_meanwhile():
        meddling._patch.setattr(bulk, "_bulk_load", meddling._bulk_load)
        fs.rm(path)
        release.made.succeed("load")
        fs.pipe_file(path, release.job_files[hfile_name(1)])

    with pytest.raises(VerificationError, match=r"HBase has it 2 times, .* another load has proved it"):
        meddling.load(load_meanwhile)
    assert release.state()[1] == LOADED
    assert release.is_whole()


def test_a_region_that_is_split_during_the_load_is_counted(release, meddling, cluster):
    def split():
        split_region(cluster, release.table, b"6000")
        deadline = time.monotonic() + DEADLINE
        while b"6000" not in {region.start for region in release.connection.regions(release.table)}:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    assert meddling.load(after=split).proved == 3
    assert release.said == ["counting the rows of 1 of 4 regions (part-00001: the table has other regions)"]
    assert release.is_whole()


def test_hbases_files_prove_the_table_or_say_why_not(release):
    """Of one table: its files swapped and rewritten, next to another file, and closed to a user."""
    release.begin()
    release.load()
    storage, fs = release.folder.storage, release.folder.storage.fs
    assert (release.prove().proved, release.prove().doubts, release.prove().mismatches) == ({0, 1, 2, 3}, {}, {})
    files = [release.region_file(part) for part in range(4)]

    def rename(*pairs):
        for source, target in pairs:
            fs._call("RENAME", method="put", path=source, destination=target, renameoptions="NONE")

    aside = f"{release.folder.path}/aside"
    swap = [(files[1], aside), (files[2], files[1]), (aside, files[2])]
    rename(*swap)
    swapped = release.prove()
    assert swapped.proved == {0, 3}
    other = "p/part-0000{}: HBase's file {} is not the one that was written"
    assert swapped.mismatches == {part: other.format(part, files[part]) for part in (1, 2)}
    rename(*swap)
    rename((files[0], aside))
    missing = release.prove()
    assert missing.doubts == {0: f"{files[0].rpartition('/')[0]} has no file"}
    fs.pipe_file(files[0], flipped(release.job_files[hfile_name(0)]))
    assert release.prove().mismatches == {0: other.format(0, files[0])}
    fs.rm(files[0])
    rename((aside, files[0]))
    compacted = f"{files[3].rpartition('/')[0]}/{'0' * 32}"
    fs.pipe_file(compacted, b"as HBase names a file that it has written")
    folder = files[2].rpartition("/")[0]
    fs._call("SETPERMISSION", method="put", path=folder, permission="700")
    url = f"webhdfs://stranger@{storage.address}/tests"
    assert release.prove(storage=Storage(url, release.made.name)).doubts == {
        2: f"user stranger may not read {folder}",
        3: f"{compacted.rpartition('/')[0]} has other files",
    }
    fs._call("SETPERMISSION", method="put", path=folder, permission="755")
    fs.rm(compacted)
    assert release.prove().proved == {0, 1, 2, 3}
    # A file in the right place proves nothing if HBase does not read it.
    release.connection.delete_row(
        release.table, document.read(RegionFacts, release.facts()[facts_name(1)], "").bounds[1]
    )
    mismatches = release.prove().mismatches
    assert mismatches.keys() == {1}
    assert mismatches[1].startswith("p/part-00001: HBase has its file, but reads the rows []")


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
    by_job = release.facts()
    release.folder.remove("hfiles")
    with pytest.raises(KeyboardInterrupt):
        release.load(shown=interrupting)  # it ends before HBase gets any
    assert release.files() == PARTS
    facts = release.facts()
    assert {name: by_job[name] for name in map(facts_name, range(4))} == facts
