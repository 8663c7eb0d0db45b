"""Each cause that the doctor knows, provoked on the cluster: the message of the job and that of the doctor."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import badmodels
import pytest
from conftest import CHECKOUT, Project, make_orders, manifest_of, properties, replace_export

from hadoop.config import ClusterConfig
from hadoop.engine import Cluster, daemons

pytestmark = pytest.mark.cluster

# One map, one attempt, and no reducer before the map has ended: a failing job need not start more.
ONCE = {
    "mapreduce.map.maxattempts": 1,
    "mapreduce.reduce.maxattempts": 1,
    "mapreduce.job.maps": 1,
    "mapreduce.job.reduce.slowstart.completedmaps": 1.0,
}


@pytest.fixture(scope="module")
def orders_release(project, tmp_path_factory):
    """A project with an exported and trained release, and the release's folder. Tests undo their changes."""
    folder = tmp_path_factory.mktemp("orders")
    made = project((make_orders(folder) / "predictions.toml").read_text(), folder, yarn=True)
    return made, made.train()


def fails(made, folder, environment):
    """Score, which must fail, and return the cause."""
    return fails_as(made, folder, environment)[1]


def fails_as(made, folder, environment):
    """Score, which must fail, and return the job ID and the cause."""
    failed = made.run("score", **environment)
    assert failed.returncode == 6, failed.stderr
    [message] = [line for line in failed.stderr.splitlines() if line.startswith("predictions: ")]
    job, cause = re.fullmatch(r"predictions: (job_\d+_\d+) failed: (.*)", message).groups()
    assert not [name for name in made.storage.names(folder.path) if "scored" in name]
    return job, cause


def executable(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def put_model(folder, write_model, local_folder):
    line = write_model(local_folder)
    for path in local_folder.iterdir():
        folder.storage.fs.pipe_file(f"{folder.path}/model/{path.name}", path.read_bytes())
    return line


@pytest.fixture
def model(orders_release):
    """The two files of the model, restored after the test."""
    _made, folder = orders_release
    files = {name: folder.read(f"model/{name}") for name in folder.model.files}
    yield files
    for name, data in files.items():
        folder.storage.fs.pipe_file(f"{folder.path}/model/{name}", data)


@pytest.fixture
def with_line(orders_release):
    """A function that adds a line to the export for one test."""
    _made, folder = orders_release
    manifest = manifest_of(folder)
    lines = folder.read("export/part-00000").splitlines()
    yield lambda line: replace_export(folder, [[*lines[:200], line, *lines[200:]]])
    replace_export(folder, [lines])
    folder.write_manifest(manifest)


def test_a_python_without_the_libraries(orders_release):
    made, folder = orders_release
    bare = str(Path(sys._base_executable).resolve())
    cause = fails(made, folder, properties(**ONCE) | {"PREDICTIONS_HADOOP_PYTHON": bare})
    assert re.match(
        r"the tasks' Python has no module \w+ \(split part-00000:\d+\+\d+\); install .*predictions pack", cause
    )


def test_a_python_that_is_not_there(orders_release):
    made, folder = orders_release
    cause = fails(made, folder, properties(**ONCE) | {"PREDICTIONS_HADOOP_PYTHON": "/nowhere/python3"})
    assert re.match(r"a node has no program /nowhere/python3( \(split \S+\))?; set hadoop.python", cause)


def test_another_scikit_learn(orders_release, model):
    made, folder = orders_release
    manifest = json.loads(model["model.json"])
    manifest["versions"]["scikit-learn"] = "1.0.2"
    manifest["compiled"] = None
    folder.storage.fs.pipe_file(f"{folder.path}/model/model.json", json.dumps(manifest).encode())
    cause = fails(made, folder, properties(**ONCE))
    assert cause.startswith("mapper.py: the model was trained with scikit-learn 1.0.2, this Python has")
    assert "install scikit-learn==1.0.2" in cause


def test_another_model(orders_release, model):
    made, folder = orders_release
    folder.storage.fs.pipe_file(f"{folder.path}/model/model.npz", b"another model")
    cause = fails(made, folder, properties(**ONCE))
    assert re.match(r"mapper.py: model.npz: its sha256 is .* start a new release", cause)


def test_a_container_that_takes_too_much_memory(orders_release):
    made, folder = orders_release
    small = {"mapreduce.map.memory.mb": 256, "mapreduce.task.io.sort.mb": 10}
    greedy = {"mapreduce.map.java.opts": "-Xms500m -Xmx500m -XX:+AlwaysPreTouch"}
    job, cause = fails_as(made, folder, properties(**ONCE, **small, **greedy))
    assert re.match(r"a task's container was killed for its memory: \S+ MB of 256 MB", cause)
    assert '"mapreduce.map.memory.mb"' in cause
    assert made.succeed("doctor", job).stdout == f"{job}: {cause}\n"


def test_a_record_on_which_the_model_raises(orders_release, model, with_line, tmp_path):
    made, folder = orders_release
    with_line(put_model(folder, badmodels.raising, tmp_path))
    cause = fails(made, folder, properties(**ONCE))
    assert re.match(r"mapper.py: split part-00000\+0, record unknown: ValueError: Found unknown categories", cause)


def test_a_record_on_which_the_mapper_crashes(orders_release, model, with_line, tmp_path):
    made, folder = orders_release
    with_line(put_model(folder, badmodels.segfaulting, tmp_path))
    job, cause = fails_as(made, folder, properties(**ONCE | {"mapreduce.map.maxattempts": 3}))
    assert cause == "mapper.py: split part-00000+0, record fatal: scoring it kills the process (SIGSEGV)"
    assert made.succeed("doctor", job).stdout == f"{job}: {cause}\n"
    once = fails(made, folder, properties(**ONCE))
    assert re.match(r"a task's Python crashed: Segmentation fault \(split part-00000:0\+\d+\)", once)


def test_a_full_disk(orders_release, tmp_path):
    made, folder = orders_release
    full = executable(tmp_path / "python", f'exec {sys.executable} "$@" > /dev/full')
    cause = fails(made, folder, properties(**ONCE) | {"PREDICTIONS_HADOOP_PYTHON": full})
    assert cause.startswith("a disk is full: no space left on device")
    assert "yarn.nodemanager.local-dirs" in cause


def dfs_admin(cluster, *arguments):
    hadoop = CHECKOUT / "hadoop" / "bin" / "hadoop"
    result = subprocess.run(
        [hadoop, "org.apache.hadoop.hdfs.tools.DFSAdmin", *arguments],
        env={**os.environ, "CLUSTER_DIR": str(cluster.config.folder)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_a_full_hdfs(orders_release, cluster):
    made, folder = orders_release
    made.succeed("score", "--dry-run")  # writes the job's files, before the quota leaves no room for them
    dfs_admin(cluster, "-setSpaceQuota", "1m", folder.path)
    try:
        cause = fails(made, folder, properties(**ONCE))
        assert re.match(r"HDFS is full: The DiskSpace quota of /tests/.* is exceeded", cause)
        refused = made.run("train")
        assert refused.returncode == 0  # the model exists already, so nothing is written
    finally:
        dfs_admin(cluster, "-clrSpaceQuota", folder.path)


def test_safe_mode(second, tmp_path):
    """On the second cluster, since the first one may be in use."""
    made = Project(tmp_path, second, (make_orders(tmp_path) / "predictions.toml").read_text(), yarn=True)
    made.train()
    dfs_admin(second, "-safemode", "enter")
    try:
        failed = [made.run("export"), made.run("score")]
        doctor = made.run("doctor")
    finally:
        dfs_admin(second, "-safemode", "leave")
    for result in failed:
        assert result.returncode == 4, result.stderr
        assert "HDFS is in safe mode, so it accepts no writes" in result.stderr.splitlines()[-1]
    assert doctor.returncode == 4
    assert "FAIL  storage: HDFS is in safe mode" in doctor.stdout
    assert "ok    Thrift" in doctor.stdout


def test_an_unhealthy_node(orders_release, cluster, tmp_path):
    """Start YARN alone on other ports; its only node counts every disk as full."""
    made, _folder = orders_release
    config = ClusterConfig(tmp_path / "yarn", cluster.config.port_offset + 3000)
    config.write()
    site = config.conf / "yarn-site.xml"
    site.write_text(site.read_text().replace(">99.5<", ">0.0<"))
    yarn = Cluster(config)
    (config.folder / "run").mkdir()
    for daemon in daemons(1, config):
        if daemon.name in ("resourcemanager", "nodemanager"):
            yarn._launch(daemon)
    sick = {"CLUSTER_DIR": str(config.folder)}
    try:
        deadline = time.monotonic() + 300
        while "unhealthy:" not in (doctor := made.run("doctor", **sick)).stdout and time.monotonic() < deadline:
            time.sleep(1)
        assert doctor.returncode == 4
        assert re.search(r"FAIL  YARN: no YARN node can run a task, .* unhealthy: \S+: \S.*local-dirs", doctor.stdout)
        failed = made.run("score", **sick)
        assert failed.returncode == 4
        assert "no YARN node can run a task, so a job would wait for ever" in failed.stderr
    finally:
        yarn.stop(lambda _text: None)


def test_services_that_cannot_be_reached(orders_release, cluster, tmp_path):
    made, _folder = orders_release
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        unused_port = probe.getsockname()[1]
        doctor = made.run(
            "--storage",
            f"webhdfs://127.0.0.1:{unused_port}/tests",
            "doctor",
            PREDICTIONS_HBASE_THRIFT=f"127.0.0.1:{unused_port}",
            PREDICTIONS_HBASE_TIMEOUT="1",
        )
    assert doctor.returncode == 4
    assert f"FAIL  Thrift: HBase's Thrift server at 127.0.0.1:{unused_port}: " in doctor.stdout
    assert f"FAIL  storage: HDFS does not answer at 127.0.0.1:{unused_port}" in doctor.stdout
    offline = tmp_path / "offline"
    ClusterConfig(offline, cluster.config.port_offset + 4000).write()
    doctor = made.run("doctor", CLUSTER_DIR=str(offline))
    assert "FAIL  YARN: YARN does not answer" in doctor.stdout


def test_a_setup_that_is_fit_and_one_that_is_not(orders_release, tmp_path):
    made, _folder = orders_release
    lines = made.succeed("doctor").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"ok    {name}"
        for name in ("database", "storage", "hadoop", "YARN", "tasks' Python", "hbase", "Thrift", "bulk load")
    ]
    bare = executable(tmp_path / "bare", f'exec {sys.executable} -S "$@"')  # no site-packages
    unfit = made.run("doctor", PREDICTIONS_HADOOP_PYTHON=bare, PREDICTIONS_MODEL_LABEL="payed")
    assert unfit.returncode == 2
    assert "FAIL  database: no column payed" in unfit.stdout
    assert "FAIL  tasks' Python" in unfit.stdout
    assert "predictions pack" in unfit.stdout


def test_a_user_who_may_not_enter_where_hbase_takes_over_files(orders_release):
    made, folder = orders_release
    fs = folder.storage.fs

    def staging(mode):
        fs._call("SETPERMISSION", method="put", path="/hbase/staging", permission=mode)

    port = folder.storage.address.rpartition(":")[2]
    fs.makedirs("/doctor")
    fs._call("SETPERMISSION", method="put", path="/doctor", permission="777")
    analyst = ("--storage", f"webhdfs://analyst@127.0.0.1:{port}/doctor", "doctor")
    staging("700")
    try:
        refused = made.run(*analyst)
    finally:
        staging("711")
    assert refused.returncode == 2
    assert "FAIL  bulk load: user analyst may not enter /hbase/staging, into which HBase moves HFiles" in refused.stdout
    assert "ok    bulk load: HFiles can be moved to /hbase/staging" in made.succeed(*analyst).stdout
    fs.rm("/doctor", recursive=True)


def test_unknown_and_successful_jobs(orders_release):
    made, folder = orders_release
    result = made.run("doctor", "application_1_0001")
    assert (result.returncode, "YARN has no job with this ID" in result.stderr) == (2, True)
    assert made.run("doctor", "nonsense").returncode == 2
    manifest = manifest_of(folder)
    made.succeed("score")
    command = "org.apache.hadoop.yarn.client.cli.ApplicationCLI application -list -appStates FINISHED"
    listed = subprocess.run([CHECKOUT / "hadoop/bin/hadoop", *command.split()], capture_output=True, text=True).stdout
    newest = max(re.findall(rf"(application_\w+)\s+predictions {made.name} {folder.release}", listed))
    assert made.succeed("doctor", newest).stdout == f"{newest}: the job succeeded\n"
    for part in ("scored", "hfiles"):
        folder.remove(part)
    folder.write_manifest(manifest)
