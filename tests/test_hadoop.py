"""Hadoop jobs without a cluster: the command, the partition file, the bundle, the error of a failed job."""

import os
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from conftest import CHECKOUT

from hadoop.config import PORTS, ClusterConfig
from predictions.errors import InputError, InternalError, ServiceError
from predictions.jobs import bundle as packing
from predictions.jobs import streaming
from predictions.jobs.partitions import partition_file
from predictions.jobs.streaming import Job, find_streaming_jar, printable

MAPS_ALONE = Job("a load", "/in/part-*", "/out", "python3 -m loader load.json", ["a"], ["c#lib"])
JOB = Job(
    name="a name",
    input="/in",
    output="/out",
    mapper="python3 mapper.py",
    reducer="python3 reducer.py",
    reduces=3,
    partitions="/p",
    files=["a", "b"],
    archives=["c#lib"],
    environment={"A": "1"},
    properties={"mapreduce.job.queuename": "night shift", "mapreduce.map.memory.mb": "2048"},
)


def properties_of(command):
    """Return the properties that a command sets."""
    return dict(word.split("=", 1) for option, word in pairwise(command) if option == "-D")


def test_the_command_has_generic_options_first():
    command = JOB.command("hadoop", Path("/s.jar"))
    assert command[:3] == ["hadoop", "jar", "/s.jar"]
    order = [command.index(word) for word in ("-D", "-files", "-archives", "-input", "-output", "-mapper", "-reducer")]
    assert order == sorted(order)
    assert command[command.index("-files") + 1] == "a,b"
    assert "mapreduce.totalorderpartitioner.path=/p" in command
    assert command[-2:] == ["-cmdenv", "A=1"]


@pytest.mark.parametrize("job", [JOB, MAPS_ALONE])
def test_a_line_ends_at_a_line_feed_only(job):
    assert properties_of(job.command("hadoop", Path("/s.jar")))["textinputformat.record.delimiter"] == "\n"


def test_a_job_of_maps_alone_neither_sorts_nor_writes():
    command = MAPS_ALONE.command("hadoop", Path("/s.jar"))
    properties = properties_of(command)
    assert properties["mapreduce.job.reduces"] == "0"
    assert "mapreduce.totalorderpartitioner.path" not in properties
    assert command[-2:] == ["-outputformat", "org.apache.hadoop.mapred.lib.NullOutputFormat"]
    assert not {"-reducer", "-partitioner", "-cmdenv"} & set(command)
    assert command.index("-input") > command.index("-archives")
    assert "-mapper 'python3 -m loader load.json' \\\n" in printable(command)
    assert "-input '/in/part-*' \\\n" in printable(command)  # Hadoop must expand it, not the shell


def test_properties_of_the_settings_override_ours_except_those_that_a_result_depends_on():
    user_properties = {
        "mapreduce.job.queuename": "night",
        "yarn.resourcemanager.connect.max-wait.ms": "1",
        "textinputformat.record.delimiter": "|",
        "mapreduce.job.reduces": "1",
        "mapreduce.totalorderpartitioner.path": "/elsewhere",
    }
    properties = properties_of(replace(JOB, properties=user_properties).command("hadoop", Path("/s.jar")))
    assert properties["mapreduce.job.queuename"] == "night"
    assert properties["yarn.resourcemanager.connect.max-wait.ms"] == "1"
    assert properties["textinputformat.record.delimiter"] == "\n"
    assert properties["mapreduce.job.reduces"] == "3"
    assert properties["mapreduce.totalorderpartitioner.path"] == "/p"


def test_the_printed_command_is_the_same_to_a_shell():
    command = JOB.command("hadoop", Path("/s.jar"))
    text = printable(command)
    assert text.startswith("hadoop jar /s.jar \\\n    -D yarn.resourcemanager")
    assert "-D 'mapreduce.job.queuename=night shift' \\\n" in text
    assert "  \\" not in text
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, text=True, check=True).stdout
    assert words.split("\0")[:-1] == command


def test_the_partition_file():
    data = partition_file([b"4000", b"8000"])
    assert data.startswith(b"SEQ\x06\x19org.apache.hadoop.io.Text!org.apache.hadoop.io.NullWritable\0\0\0\0\0\0")
    assert data.endswith(struct.pack(">ii", 5, 5) + b"\x044000" + struct.pack(">ii", 5, 5) + b"\x048000")


def test_the_bundle_is_the_same_each_time():
    assert packing.bundle() == packing.bundle()
    names = zipfile.ZipFile(BytesIO(packing.bundle())).namelist()
    assert "predictions/scoring/model.py" in names
    assert not [name for name in names if "cli" in name or "client" in name]


def test_the_loaders_bundle_is_the_same_each_time():
    assert packing.load_bundle() == packing.load_bundle()
    names = zipfile.ZipFile(BytesIO(packing.load_bundle())).namelist()
    assert "loader/__main__.py" in names
    assert not [
        name for name in names if name.startswith(("hadoop/", "/", "..")) or "cli" in Path(name).stem.split("_")
    ]


PROBE = """
import sys, runpy
runpy.run_module("loader", run_name="loaded")
for name in ("predictions.hbase.connection", "happybase", "thriftpy2.protocol.cybin", "numpy"):
    print(name, sys.modules[name].__file__)
"""


def test_the_loaders_bundle_has_all_that_a_task_imports_but_numpy_and_xxhash(tmp_path):
    """Import the loader from the bundle alone, with a Python without site-packages."""
    zipfile.ZipFile(BytesIO(packing.load_bundle())).extractall(tmp_path / "lib")
    (tmp_path / "environment").mkdir()
    for module in (np, xxhash):
        folder = Path(module.__file__).parent
        for path in [folder, *folder.parent.glob(f"{folder.name}.libs")]:
            (tmp_path / "environment" / path.name).symlink_to(path)
    result = subprocess.run(
        [sys.executable, "-S", "-c", PROBE],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "lib:environment"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    files = dict(line.split() for line in result.stdout.splitlines())
    assert files.pop("numpy").startswith(f"{tmp_path}/environment/")
    assert [name for name, file in files.items() if not file.startswith(f"{tmp_path}/lib/")] == []


def test_the_packed_libraries_are_requirements_of_the_package():
    text = (CHECKOUT / "setup.cfg").read_text()
    for name in packing.TASK_LIBRARIES:
        assert f"\n    {name}>=" in text


def failure(monkeypatch, report, *logs):
    monkeypatch.setattr(streaming, "attempt_logs", lambda _application, _hadoop: iter(logs))
    return streaming._failure(report, "hadoop")


RUNNING = "INFO mapreduce.Job: Running job: job_1_0001\n"
QUOTA = "DSQuotaExceededException: The DiskSpace quota of /p is exceeded: quota = 1 MB"


@pytest.mark.parametrize(
    ("report", "logs", "message"),
    [
        ("Error: subprocess failed with code 2", ["x", "mapper.py: another model"], "mapper.py: another model"),
        ("Error: subprocess failed with code 1", [], "a task's script failed without a message: subprocess"),
        (QUOTA, [], "HDFS is full: The DiskSpace quota"),
        ("java.net.ConnectException: Connection refused", [], "java.net.ConnectException"),
        ("Job failed", [], "no cause in its logs"),
    ],
)
def test_a_job_that_ran_and_failed_is_an_internal_error_whatever_the_cause(monkeypatch, report, logs, message):
    error = failure(monkeypatch, RUNNING + report, *logs)
    assert type(error) is InternalError
    assert str(error).startswith(f"job_1_0001 failed: {message}")


def test_no_yarn_is_an_unreachable_service(monkeypatch):
    report = "java.net.ConnectException: Call From localhost to localhost:8032 failed: Connection refused"
    assert isinstance(failure(monkeypatch, report), ServiceError)


def test_a_job_that_was_not_accepted_says_why(monkeypatch):
    full = failure(monkeypatch, QUOTA)
    assert isinstance(full, ServiceError)
    assert str(full).startswith("the job was not accepted: HDFS is full: The DiskSpace quota")
    other = failure(monkeypatch, "2026-11-22 ERROR streaming.StreamJob: Error Launching job : Output exists\nbye\n")
    assert isinstance(other, InternalError)
    assert str(other).endswith("ERROR streaming.StreamJob: Error Launching job : Output exists")
    assert str(failure(monkeypatch, "")) == "the job was not accepted: no message"


def test_the_streaming_jar_is_found_where_distributions_keep_it(tmp_path, monkeypatch):
    monkeypatch.delenv("HADOOP_HOME", raising=False)
    (tmp_path / "bin").mkdir()
    hadoop = tmp_path / "bin" / "hadoop"
    hadoop.touch()
    with pytest.raises(InputError, match=r"hadoop\.streaming_jar"):
        find_streaming_jar(str(hadoop), None)
    jar = tmp_path / "share" / "hadoop" / "tools" / "lib" / "hadoop-streaming-3.4.2.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    assert find_streaming_jar(str(hadoop), None) == jar
    assert find_streaming_jar(str(hadoop), jar) == jar
    with pytest.raises(InputError, match="no such file"):
        find_streaming_jar(str(hadoop), tmp_path / "none.jar")


def test_every_configuration_binds_to_loopback(tmp_path):
    config = ClusterConfig(tmp_path, 1000)
    config.write()
    text = "".join(path.read_text() for path in config.conf.glob("*.xml"))
    assert "$" not in text
    assert "0.0.0.0" not in text
    for name in PORTS:
        if name != "thrift":  # a command-line argument, not a setting
            assert str(config.port(name)) in text, name
    assert config.java("X")[0] == "java"
