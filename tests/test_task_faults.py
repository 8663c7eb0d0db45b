"""A job's tasks on a real cluster: whatever dies or lags, the output is that of an undisturbed run, byte for byte."""

import json
import random
import re
import signal
import threading
import time

import psutil
import pytest
from conftest import make_orders, manifest_of, properties, replace_export

from predictions.errors import InternalError
from predictions.formats.document import to_file
from predictions.formats.hfile.region_file import RegionFacts, RegionFile, facts_name, hfile_name
from predictions.formats.record_line import split_lines
from predictions.formats.row_key import row_keys
from predictions.task.current import comparison_name
from predictions.task.webhdfs import upload

pytestmark = pytest.mark.cluster


class Attempts(threading.Thread):
    """Call `on_attempt` once for each running attempt of a project: with its ID, its script's process and its JVM's."""

    def __init__(self, project, on_attempt):
        super().__init__(daemon=True)
        self._project, self._on_attempt, self._seen = project.name, on_attempt, set()
        self._stop_requested = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exception):
        self._stop_requested.set()
        self.join()

    def run(self):
        while not self._stop_requested.wait(0.05):
            for process in psutil.process_iter(["cmdline"]):
                if not any(word in ("mapper.py", "reducer.py") for word in process.info["cmdline"] or ()):
                    continue
                try:
                    variables = process.environ()
                    attempt = variables["mapreduce_task_attempt_id"]
                    if self._project not in variables["mapreduce_job_name"]:
                        continue  # a job of another project on the same cluster
                    jvm = next(parent for parent in process.parents() if "YarnChild" in " ".join(parent.cmdline()))
                except (KeyError, StopIteration, psutil.Error):
                    continue  # the process is gone, or it is not an attempt's
                if attempt not in self._seen:
                    self._seen.add(attempt)
                    self._on_attempt(attempt, process, jvm)


@pytest.fixture
def orders_project(project, tmp_path):
    return project((make_orders(tmp_path) / "predictions.toml").read_text(), tmp_path, yarn=True)


def undisturbed(project, folder):
    """Return the output of a run without Hadoop; its files are removed again."""
    project.succeed("score", "--runner", "local")
    scored = project.scored(folder)
    folder.remove("scored")
    return scored


def check_hfiles(folder, tmp_path):
    """Check that each region with rows has one HFile, with the bytes that its lines give, and no other files exist."""
    storage, expected = folder.storage, {}
    for part, path in enumerate(folder.files("scored")):
        with RegionFile(str(tmp_path / "hfiles"), part) as file:
            for block in folder.blocks(path):
                file.write(block)
        if file.facts.rows:
            expected[hfile_name(part)] = (tmp_path / "hfiles" / hfile_name(part)).read_bytes()
            file.set_hdfs_checksum(storage.checksum(f"{folder.path}/hfiles/{hfile_name(part)}"))
        expected[facts_name(part)] = to_file(file.facts)
    paths = storage.fs.find(f"{folder.path}/hfiles")
    files = {path.removeprefix(f"{folder.path}/hfiles/"): storage.fs.cat_file(path) for path in paths}
    comparisons = [name for name in sorted(files) if name.endswith(".comparison.json")]
    assert comparisons == [comparison_name(part) for part in range(len(folder.files("scored")))]
    rows = sum(json.loads(files.pop(name))[0]["after"]["rows"] for name in comparisons)
    assert rows == manifest_of(folder).scored.rows
    assert files == expected


def copies(lines, number):
    return [b"%d-%b" % (copy, line) for copy in range(number) for line in lines]


def lines_of(folder):
    return [line for path in folder.files("export") for block in folder.blocks(path) for line in split_lines(block)]


def test_every_first_attempt_killed(orders_project, tmp_path):
    """Of three mappers and four reducers: in turn the script or its JVM is killed, at a random moment."""
    project = orders_project
    folder = project.train()
    lines = copies(lines_of(folder), 1_000)  # so many that no script ends before it is killed
    replace_export(folder, [lines[0::3], lines[1::3], lines[2::3]])
    expected = undisturbed(project, folder)
    killed = []

    def kill(attempt, script, jvm):
        if attempt.endswith("_0"):
            victim = (script, jvm)[len(killed) % 2]
            time.sleep(random.uniform(0, 0.2))
            victim.kill()
            killed.append((attempt, victim is script))

    with Attempts(project, kill):
        project.succeed("score")
    assert project.scored(folder) == expected
    check_hfiles(folder, tmp_path)
    tasks = {re.search(r"_([mr]_\d+)_0$", attempt)[1] for attempt, _script in killed}
    assert tasks == {"m_000000", "m_000001", "m_000002", "r_000000", "r_000001", "r_000002", "r_000003"}
    assert {script for _attempt, script in killed} == {True, False}


def is_alive(process):
    """Whether a process runs: one that was killed remains as a zombie until the process that inherited it reaps it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stragglers_are_overtaken_by_second_attempts(orders_project, tmp_path):
    """A mapper and then a reducer of one job are stopped."""
    project = orders_project
    folder = project.train()
    lines = copies(lines_of(folder), 300)  # more than a pipe holds: Hadoop must see progress before it stops
    replace_export(folder, [lines[0::3], lines[1::3], lines[2::3]])
    expected = undisturbed(project, folder)
    attempts, stopped = [], {}

    def stop(attempt, script, _jvm):
        attempts.append(attempt)
        if task := re.search(r"_([mr]_000001)_0$", attempt):
            script.send_signal(signal.SIGSTOP)
            stopped[task[1]] = script

    eager = {
        "mapreduce.map.speculative": "true",
        "mapreduce.reduce.speculative": "true",
        "mapreduce.job.speculative.retry-after-speculate": 1000,
        # Reducers that wait for the straggler would hold the memory that its second attempt needs.
        "mapreduce.job.reduce.slowstart.completedmaps": 1.0,
    }
    with Attempts(project, stop):
        project.succeed("score", **properties(**eager))
    assert project.scored(folder) == expected
    check_hfiles(folder, tmp_path)
    assert stopped.keys() == {"m_000001", "r_000001"}
    for task, script in stopped.items():
        assert [attempt for attempt in attempts if attempt.endswith(f"_{task}_1")]
        assert not is_alive(script)


def test_an_upload_is_read_back_and_its_hdfs_checksum_is_kept(orders_project, tmp_path, monkeypatch, capsys):
    storage = orders_project.storage
    output = f"{storage.folder}/attempt"
    monkeypatch.setenv("mapreduce_task_output_dir", f"hdfs://localhost:1{output}")
    monkeypatch.setenv("dfs_namenode_http_address", storage.address)
    [key] = row_keys([b"1"])
    with RegionFile(str(tmp_path / "hfiles"), 3) as hfile:
        hfile.write(b"%b\t1\t0.9\taaaaaaaaaaaaaaaa\t1795362300000\t\\N\n" % key)
    upload(str(tmp_path / "hfiles"), hfile)
    uploaded = RegionFacts(**vars(hfile.facts) | {"hdfs_checksum": storage.checksum(f"{output}/hfiles/p/part-00003")})
    assert storage.fs.cat_file(f"{output}/hfiles/part-00003.json") == to_file(uploaded)
    assert (hfile.facts, "hadoop fs" in capsys.readouterr().err) == (uploaded, False)
    (tmp_path / "hfiles" / "p" / "part-00003").write_bytes(b"damaged on the way")
    with pytest.raises(InternalError, match="hfiles/p/part-00003: HDFS does not return the file that was uploaded"):
        upload(str(tmp_path / "hfiles"), hfile)


def test_one_line_a_split_an_empty_split_and_a_reducer_without_input(orders_project, tmp_path):
    project = orders_project
    folder = project.train()
    by_region = {}
    for line in lines_of(folder):
        by_region.setdefault(row_keys([line.partition(b"\t")[0]])[0][:1] < b"8", []).append(line)
    few = by_region[True][:4]  # the two upper regions get none
    replace_export(folder, [few, []])
    expected = undisturbed(project, folder)
    assert len(expected.splitlines()) == 4
    project.succeed("score", **properties(**{"mapreduce.input.fileinputformat.split.maxsize": 12}))
    assert project.scored(folder) == expected
    assert len(folder.files("scored")) == 4
    check_hfiles(folder, tmp_path)
    project.succeed("load", "--via", "hfiles")
    project.succeed("verify", "--full")
