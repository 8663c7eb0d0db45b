import pytest

from predictions.task import environment as task


@pytest.fixture(autouse=True)
def pipe(monkeypatch):
    """Remove the variables of a job: the tests may run in one."""
    for name in ("job_id", "map_input_file", "map_input_start", "task_attempt_id"):
        monkeypatch.delenv(f"mapreduce_{name}", raising=False)


def test_a_pipe_is_no_job():
    assert (task.in_job(), task.input_name(), task.split_name(), task.attempt()) == (False, None, "stdin", 0)


def test_a_task_knows_its_job_split_and_attempt(monkeypatch):
    monkeypatch.setenv("mapreduce_job_id", "job_1795362300000_0007")
    monkeypatch.setenv("mapreduce_map_input_file", "hdfs://localhost:9000/predictions/orders/export/part-00007")
    monkeypatch.setenv("mapreduce_map_input_start", "134217728")
    monkeypatch.setenv("mapreduce_task_attempt_id", "attempt_1795362300000_0007_m_000003_2")
    assert (task.in_job(), task.split_name(), task.attempt()) == (True, "part-00007+134217728", 2)
    assert task.input_name() == "part-00007"


def test_a_split_without_a_start_is_the_first(monkeypatch):
    monkeypatch.setenv("mapreduce_map_input_file", "hdfs://localhost:9000/predictions/part-00007")
    assert task.split_name() == "part-00007+0"


def test_a_status_is_a_line_that_hadoop_reads_at_once(capfd):
    task.status("part-00007: waiting for HBase: no answer in time")
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "reporter:status:part-00007: waiting for HBase: no answer in time\n")
