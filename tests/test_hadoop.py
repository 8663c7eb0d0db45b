"""What is handed to Hadoop, without a cluster: the command, the partition file, the bundle, the cause of a failure."""

import struct
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from conftest import CHECKOUT

from hadoop import packing, streaming
from hadoop.config import PORTS, ClusterConfig
from hadoop.partitions import partition_file
from hadoop.streaming import Job, find_streaming_jar, printable
from predictions.errors import InputError, InternalError, ServiceError

JOB = Job(
    "a name", "/in", "/out", "python3 mapper.py", "python3 reducer.py", 3, "/p", ["a", "b"], ["c#lib"], {"A": "1"}
)


def test_the_command_has_generic_options_first():
    command = JOB.command("hadoop", Path("/s.jar"))
    assert command[:3] == ["hadoop", "jar", "/s.jar"]
    order = [command.index(word) for word in ("-D", "-files", "-archives", "-input", "-output", "-mapper", "-reducer")]
    assert order == sorted(order)
    assert command[command.index("-files") + 1] == "a,b"
    assert "mapreduce.totalorderpartitioner.path=/p" in command
    assert command[-2:] == ["-cmdenv", "A=1"]
    text = printable(command)
    assert text.startswith("hadoop jar /s.jar \\\n    -D 'mapreduce.job.name=a name'")
    assert "  \\" not in text


def test_the_partition_file():
    data = partition_file([b"4000", b"8000"])
    assert data.startswith(b"SEQ\x06\x19org.apache.hadoop.io.Text!org.apache.hadoop.io.NullWritable\0\0\0\0\0\0")
    assert data.endswith(struct.pack(">ii", 5, 5) + b"\x044000" + struct.pack(">ii", 5, 5) + b"\x048000")


def test_the_bundle_is_the_same_each_time():
    assert packing.bundle() == packing.bundle()
    names = zipfile.ZipFile(BytesIO(packing.bundle())).namelist()
    assert "predictions/model.py" in names
    assert not [name for name in names if "cli" in name or "client" in name]


def test_the_packed_libraries_are_requirements_of_the_package():
    text = (CHECKOUT / "setup.cfg").read_text()
    for name in packing.TASK_LIBRARIES:
        assert f"\n    {name}>=" in text


def failure(monkeypatch, report, logs=""):
    monkeypatch.setattr(streaming, "_attempt_logs", lambda _application, _hadoop: iter([logs]))
    return streaming._failure(report, "hadoop")


RUNNING = (
    "INFO mapreduce.Job: Running job: job_1_0001\nError: java.lang.RuntimeException: PipeMapRed.waitOutputThreads(): "
)


def test_the_cause_of_a_refusal_is_the_scripts_own_message(monkeypatch):
    error = failure(
        monkeypatch, RUNNING + "subprocess failed with code 2", "x\nmapper.py: the model is another one\ny\n"
    )
    assert isinstance(error, InputError)
    assert str(error) == "job_1_0001 failed: mapper.py: the model is another one"


def test_the_cause_of_a_crash_is_the_end_of_its_traceback(monkeypatch):
    logs = "Traceback (most recent call last):\n  File ...\nModuleNotFoundError: No module named 'sklearn'\n"
    error = failure(monkeypatch, RUNNING + "subprocess failed with code 1", logs)
    assert isinstance(error, InternalError)
    assert str(error) == "job_1_0001 failed: ModuleNotFoundError: No module named 'sklearn'"


def test_without_logs_hadoops_own_words_are_shown(monkeypatch):
    error = failure(monkeypatch, RUNNING + "subprocess failed with code 139")
    assert "subprocess failed with code 139" in str(error)


def test_no_yarn_is_an_unreachable_service(monkeypatch):
    report = "java.net.ConnectException: Call From localhost to localhost:8032 failed: Connection refused"
    assert isinstance(failure(monkeypatch, report), ServiceError)


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
        if name != "thrift":  # an argument, not a setting
            assert str(config.port(name)) in text, name
    assert config.java("X")[0] == "java"
