"""The cause of a failed job, found in excerpts of the output of Hadoop and of its attempts."""

import time

import pytest

from predictions.diagnosis import CAUSES, diagnose
from predictions.errors import InternalError, ServiceError
from predictions.jobs.yarn import attempt_logs

MASTER, FIRST, SECOND = (f"container_1795366300000_0007_01_00000{number}" for number in (1, 2, 3))
SPLIT = "Processing split: hdfs://127.0.0.1:9000/predictions/orders/20261122T154500Z/export/part-0000"
FAILED = "Error: java.lang.RuntimeException: PipeMapRed.waitOutputThreads(): subprocess failed with code "


def report(*lines):
    """Return what `hadoop jar` prints about a job with a failed task."""
    return [
        "2026-11-22 15:46:00,001 INFO mapreduce.Job: Running job: job_1795366300000_0007",
        "2026-11-22 15:46:09,001 INFO mapreduce.Job:  map 0% reduce 0%",
        "2026-11-22 15:46:12,001 INFO mapreduce.Job: Task Id : attempt_1795366300000_0007_m_000000_0, Status : FAILED",
        *lines,
        "\tat org.apache.hadoop.streaming.PipeMapRed.waitOutputThreads(PipeMapRed.java:326)",
        "\tat org.apache.hadoop.mapred.YarnChild.main(YarnChild.java:172)",
        "",
    ]


def log(container, name, *lines):
    """Return a log of a container, as `yarn logs` prints it."""
    return [
        f"Container: {container} on localhost_45454",
        "LogAggregationType: AGGREGATED",
        "=" * 60,
        f"LogType:{name}",
        "LogLength:1234",
        "LogContents:",
        *lines,
        "",
        f"End of LogType:{name}",
        "*" * 60,
    ]


def attempt(container, *stderr, part=0):
    """Return the logs of a map attempt: its script's stderr, and the JVM's own log, which ends with the outcome."""
    return [
        *log(container, "stderr", *stderr),
        *log(
            container,
            "syslog",
            f"2026-11-22 15:46:10,001 INFO [main] org.apache.hadoop.mapred.MapTask: {SPLIT}{part}:0+13000",
            "2026-11-22 15:46:12,001 WARN [main] org.apache.hadoop.mapred.YarnChild: Exception running child",
            FAILED.removeprefix("Error: ") + "1",
            "\tat org.apache.hadoop.streaming.PipeMapRed.waitOutputThreads(PipeMapRed.java:326)",
        ),
    ]


TRACEBACK = ("Traceback (most recent call last):", '  File "/data/mapper.py", line 79, in main', "    load_model(x)")
KILLED = (
    f"Container [pid=4711,containerID={SECOND}] is running 91344896B beyond the 'PHYSICAL' memory limit. Current usage: "
    "343.1 MB of 256 MB physical memory used; 2.4 GB of 537.6 MB virtual memory used. Killing container."
)
REFUSED = (
    "mapper.py: model.skops: its sha256 is 6b2f, the manifest has 90aa; the model was replaced: start a new release"
)
# In the order of CAUSES: output, expected cause, a word of the expected cure.
CASES = [
    (attempt(FIRST, *TRACEBACK, "ValueError: x", REFUSED), REFUSED, None),
    (
        attempt(FIRST, *TRACEBACK, "ModuleNotFoundError: No module named 'sklearn.ensemble'"),
        "the tasks' Python has no module sklearn.ensemble",
        "predictions pack",
    ),
    (
        report(
            "Error: java.lang.RuntimeException: Error in configuring object",
            'Caused by: java.io.IOException: Cannot run program "python3.99": error=2, No such file or directory',
        ),
        "a node has no program python3.99",
        "hadoop.python",
    ),
    (
        report('Caused by: java.io.IOException: Cannot run program "python3": error=12, Cannot allocate memory'),
        'a node cannot start the tasks: Cannot run program "python3": error=12, Cannot allocate memory',
        "the node itself",
    ),
    (
        report(f"[2026-11-22 15:46:11.123]{KILLED}"),
        "a task's container was killed for its memory: 343.1 MB of 256 MB",
        "mapreduce.map.memory.mb",
    ),
    (
        report(
            "is running 5242880B beyond the 'VIRTUAL' memory limit. Current usage: 300.1 MB of 1 GB physical memory "
            "used; 2.2 GB of 2.1 GB virtual memory used. Killing container."
        ),
        "a task's container was killed for its virtual memory: 2.2 GB of 2.1 GB",
        "vmem-check-enabled",
    ),
    (attempt(FIRST, *TRACEBACK, "MemoryError"), "a task ran out of memory", "mapreduce.map.memory.mb"),
    (
        attempt(FIRST, *TRACEBACK, "OSError: [Errno 28] No space left on device"),
        "a disk is full: no space left on device",
        "yarn.nodemanager.local-dirs",
    ),
    (
        report(
            "Error: org.apache.hadoop.hdfs.protocol.DSQuotaExceededException: The DiskSpace quota of /predictions is "
            "exceeded: quota = 1048576 B = 1 MB but diskspace consumed = 402653184 B = 384 MB"
        ),
        "HDFS is full: The DiskSpace quota of /predictions is exceeded: quota = 1048576 B = 1 MB but diskspace "
        "consumed = 402653184 B = 384 MB",
        "-setSpaceQuota",
    ),
    (
        report(
            "Error: org.apache.hadoop.ipc.RemoteException(java.io.IOException): File /predictions/_scored/part-00000 "
            "could only be written to 0 of the 1 minReplication nodes. There are 1 datanode(s) running"
        ),
        "HDFS is full, or has no live data nodes: no data node could store a block",
        "dfsadmin -report",
    ),
    (
        report(
            "org.apache.hadoop.hdfs.server.namenode.SafeModeException: Cannot create directory /tmp/hadoop-yarn. "
            "Name node is in safe mode."
        ),
        "HDFS is in safe mode, so it accepts no writes",
        "-safemode leave",
    ),
    (
        attempt(
            FIRST, "Fatal Python error: Segmentation fault", "", "Current thread 0x00007f (most recent call first):"
        ),
        "a task's Python crashed: Segmentation fault",
        "the third one names the record",
    ),
    (
        attempt(FIRST, *TRACEBACK, "xxhash.NoSuchError: it is gone"),
        "xxhash.NoSuchError: it is gone",
        "traceback",
    ),
    (
        report("AttemptID:attempt_1_0001_m_000000_0 Timed out after 600 secs"),
        "a task gave no sign of life for 600 seconds",
        "mapreduce.task.timeout",
    ),
    (
        report("Job job_1_0001 failed with state KILLED due to: Job received Kill while in RUNNING state."),
        "the job was killed by a user",
        None,
    ),
    (report(f"{FAILED}137"), "a task's script was killed by a signal", "the node's system log"),
    (
        attempt(SECOND, "reducer.py: hadoop fs -put failed: put: no idea"),
        "reducer.py: hadoop fs -put failed: put: no idea",
        "logs",
    ),
    (report(f"{FAILED}1"), "a task's script failed without a message: subprocess failed with code 1", "logs"),
    (
        report("Error: java.io.IOException: Type mismatch in key from map"),
        "java.io.IOException: Type mismatch in key from map",
        "logs",
    ),
]


def test_each_cause_has_a_case():
    assert len(CASES) == len(CAUSES)


@pytest.mark.parametrize(("output", "cause", "cure"), CASES, ids=[case[1][:40] for case in CASES])
def test_a_cause_and_what_to_do_about_it(output, cause, cure):
    diagnosis = diagnose(output)
    assert diagnosis.cause == cause
    assert cure is None or cure in diagnosis.cure
    assert "\n" not in str(diagnosis)


def test_only_states_of_hdfs_are_service_errors():
    assert [diagnose(output).error for output, _cause, _cure in CASES] == [
        *[InternalError] * 8,
        *[ServiceError] * 3,
        *[InternalError] * 8,
    ]


@pytest.mark.parametrize("rank", range(len(CASES)))
def test_the_first_cause_in_order_is_taken_wherever_it_stands(rank):
    outputs = [output for output, _cause, _cure in CASES[rank:]]
    for order in (outputs, outputs[::-1]):
        assert diagnose(line for lines in order for line in lines).cause == CASES[rank][1]


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("java.lang.OutOfMemoryError: Java heap space", "a task ran out of memory"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3 GiB", "a task ran out of memory"),
        ("/bin/bash: line 1: python3: command not found", "a node has no program python3"),
        ('Exception in thread "main" org.apache.hadoop.security.AccessControlException: denied', "denied"),
        ("2026-11-22 FATAL [main] YarnChild: Error running child : java.lang.OutOfMemoryError", "ran out of memory"),
        ("The NameSpace quota (directories and files) of directory /p is exceeded: quota=9 file count=10", "count=10"),
        ("Cannot create file /p/x. Name node is in safe mode.", "safe mode"),
        (f"{FAILED}143", "killed by a signal"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("reducer.py: row key b'1' comes after b'2'", "reducer.py: row key"),
        (
            "reducer.py: hadoop fs -put failed: put: The DiskSpace quota of /p is exceeded: quota = 1",
            "HDFS is full: The",
        ),
    ],
)
def test_other_words_for_the_same(output, cause):
    assert cause in diagnose([output]).cause


def test_the_outcome_in_java_does_not_hide_the_exception_in_python():
    output = [*report(f"{FAILED}1"), *attempt(FIRST, *TRACEBACK, "ValueError: two\n"), *report(f"{FAILED}1")]
    assert diagnose(output).cause == "ValueError: two"


def test_the_split_is_that_of_the_attempt_that_failed():
    output = [
        *attempt(FIRST, "all is well", part=1),
        *attempt(SECOND, "Fatal Python error: Aborted", part=2),
        *attempt(MASTER, "all is well", part=3),
    ]
    assert diagnose(output).split == "part-00002:0+13000"
    assert str(diagnose(output)).startswith("a task's Python crashed: Aborted (split part-00002:0+13000); the stack")


def test_the_split_of_a_container_in_the_application_masters_log():
    line = f"2026-11-22 INFO [AsyncDispatcher] Diagnostics report from attempt_1_m_000001_0: {KILLED}"
    logs = [*log(MASTER, "syslog", line), *attempt(FIRST, part=1), *attempt(SECOND, part=2)]
    assert diagnose(logs).split == "part-00002:0+13000"
    assert diagnose([*report(KILLED), *logs[len(log(MASTER, "syslog", line)) :]]).split == "part-00002:0+13000"
    assert diagnose(log(MASTER, "syslog", line)).split is None


def test_a_message_that_names_the_split_is_not_given_it_again():
    line = "mapper.py: split part-00002+0, record fatal: scoring it kills the process (SIGSEGV)"
    assert str(diagnose(attempt(FIRST, line, part=2))) == line


def test_a_reducer_has_no_split():
    assert diagnose(log(FIRST, "stderr", "MemoryError")).split is None


def test_the_latest_words_for_a_cause_are_taken():
    third = "mapper.py: split part-00001+0, record 7: scoring it kills the process (SIGSEGV)"
    output = [*attempt(FIRST, "mapper.py: something", part=0), *attempt(SECOND, third, part=1)]
    assert (diagnose(output).cause, diagnose(output).split) == (third, "part-00001:0+13000")


def test_nothing_known():
    assert diagnose([]) is None
    assert diagnose(["INFO mapreduce.Job: Job job_1_0001 completed", "\tat java.lang.Error.<init>", "an Error"]) is None
    assert diagnose(["2026-11-22 INFO mapper.py: in the middle of a line"]) is None


@pytest.fixture
def hadoop(tmp_path):
    """Return a function that creates a command, which logs its arguments and prints the n-th text at its n-th call."""

    def hadoop(*texts):
        for number, text in enumerate(texts, 1):
            (tmp_path / str(number)).write_text(text)
        script = tmp_path / "hadoop"
        script.write_text(f'#!/bin/sh\ncd {tmp_path}\necho "$@" >> calls\ncat "$(wc -l < calls)"\nexit 1\n')
        script.chmod(0o755)
        return str(script)

    return hadoop


def test_logs_are_waited_for_until_they_are_gathered(hadoop, tmp_path):
    command = hadoop("Can not find any log file\n", "Container: c\nLogContents:\nMemoryError\xff\n")
    assert diagnose(attempt_logs("application_1_0001", command)).cause == "a task ran out of memory"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["org.apache.hadoop.yarn.client.cli.LogsCLI -applicationId application_1_0001"] * 2


def test_logs_that_do_not_come_are_not_waited_for_for_ever(hadoop):
    started = time.monotonic()
    assert list(attempt_logs("application_1_0001", hadoop("none\n", "none\n"), timeout=0.5)) == ["none\n"] * 2
    assert time.monotonic() - started < 10


def test_java_21_says_in_other_words_that_a_program_is_not_there():
    diagnosis = diagnose(['Cannot run program "python3.99": Exec failed, error: 2 (No such file or directory)'])
    assert diagnosis.cause == "a node has no program python3.99"


def test_messages_of_yarn_are_not_taken_for_python_exceptions():
    lines = ["Exception from container-launch.", "Exit code: 1", "Exception message: Launch failed"]
    assert diagnose(lines) is None
    assert diagnose([*lines, "Error: Could not find or load main class Main"]).cause == (
        "Could not find or load main class Main"
    )


def test_a_broken_pipe_is_not_the_cause():
    output = ["BrokenPipeError: [Errno 32] Broken pipe", "Error: java.io.IOException: Spill failed"]
    assert diagnose(output).cause == "java.io.IOException: Spill failed"
