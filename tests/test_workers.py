"""The workers of a load or a comparison, as real processes: their results, and that none outlives its run."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from predictions.errors import InputError, InternalError, RefusedError, ServiceError
from predictions.hbase.connection import RejectedError
from predictions.workers import cores, run_tasks

HERE = Path(__file__).parent  # no import of conftest: each worker imports this module, and must not import scikit-learn
DEADLINE = 60  # seconds; on a busy machine a process takes one second to start


def poll(condition):
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def workers(parent=None):
    """Return the worker processes: the children of a process without Python's resource tracker."""
    children = psutil.Process(parent).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def twice(number, report):
    report(number)
    report(-number)
    return 2 * number


def test_each_task_reports_and_then_has_its_result():
    events = {}
    for event in run_tasks(twice, range(1, 6), 2):
        events.setdefault(event.task, []).append((event.done, event.value))
    assert events == {number - 1: [(False, number), (False, -number), (True, 2 * number)] for number in range(1, 6)}
    assert workers() == []


def test_no_tasks_need_no_process():
    assert list(run_tasks(twice, [], 2)) == []


def meet(folder, task, _report):
    """Wait until two tasks run or all others are done; return how many run, and the process ID."""
    marker = folder / f"working-{task}"
    marker.touch()
    poll(lambda: len(list(folder.glob("working-*"))) > 1 or len(list(folder.glob("done-*"))) == 5)
    running = len(list(folder.glob("working-*")))
    marker.rename(folder / f"done-{task}")
    return running, os.getpid()


def test_as_many_tasks_run_at_once_as_there_are_processes(tmp_path):
    results = [event.value for event in run_tasks(partial(meet, tmp_path), range(6), 2)]
    assert {running for running, _process in results} <= {1, 2}
    assert 2 in {running for running, _process in results}
    assert len({process for _running, process in results}) == 2


def test_tasks_are_begun_in_their_order(tmp_path):
    assert [event.task for event in run_tasks(twice, range(4), 1) if event.done] == [0, 1, 2, 3]


def raise_or_wait(folder, error, report):
    (folder / str(os.getpid())).touch()
    if error:
        poll(lambda: len(list(folder.iterdir())) == 2)  # until the other task runs too
        raise error
    while True:
        report(None)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "error",
    [
        InputError("part-00001: no"),
        RefusedError("row after row"),
        ServiceError("gone"),
        RejectedError("HBase: no", "no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_task_is_raised_as_it_is_and_ends_the_others(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        list(run_tasks(partial(raise_or_wait, tmp_path), [None, error], 2))
    assert (type(raised.value), vars(raised.value), str(raised.value)) == (type(error), vars(error), str(error))
    assert len(list(tmp_path.iterdir())) == 2
    assert workers() == []


def fail(_task, _report):
    raise ValueError("7 is bad")


def test_an_unexpected_error_is_an_internal_one_with_its_traceback(capfd):
    with pytest.raises(InternalError, match="^ValueError: 7 is bad$"):
        list(run_tasks(fail, [1], 1))
    assert "in fail\n" in capfd.readouterr().err


def die(how, _report):
    if isinstance(how, int):
        os.kill(os.getpid(), how)
    os._exit(7)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (signal.SIGKILL, "was killed by SIGKILL"),
        (signal.SIGSEGV, "was killed by SIGSEGV"),
        (None, "ended with exit code 7"),
    ],
)
def test_a_process_that_dies_is_reported(how, message):
    with pytest.raises(InternalError, match=f"^a process of this run {message}; run the command again$"):
        list(run_tasks(die, [how], 1))


def test_a_process_that_dies_before_it_has_read_its_task_is_reported():
    def kill():
        [worker] = poll(workers)
        worker.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InternalError, match="was killed by SIGKILL"):
        list(run_tasks(twice, range(4), 1))
    killer.join()


def test_a_process_that_dies_between_two_tasks_is_reported():
    events = run_tasks(twice, range(2), 1)
    while not next(events).done:
        pass
    [worker] = workers()
    worker.kill()
    poll(lambda: worker.status() == psutil.STATUS_ZOMBIE)  # not wait(), which would take its exit code
    with pytest.raises(InternalError, match="was killed by SIGKILL"):
        list(events)


def wait_for_ever(_task, report):
    report(os.getpid())
    while True:
        time.sleep(0.05)
        report(None)


def test_no_process_is_left_when_the_caller_stops_reading():
    events = run_tasks(wait_for_ever, range(3), 2)
    next(events)
    assert len(workers()) == 2
    events.close()
    assert workers() == []


def test_an_interrupt_from_the_keyboard_is_left_to_the_parent():
    events = run_tasks(wait_for_ever, range(1), 1)
    process = next(events).value
    os.kill(process, signal.SIGINT)
    assert [next(events).value for _report in range(3)] == [None] * 3
    events.close()


PARENT = """
import signal
from test_workers import run_tasks, wait_for_ever
if __name__ == "__main__":
    events = run_tasks(wait_for_ever, range(2), 2)
    started = set()
    while len(started) < 2:
        started |= {value for value in [next(events).value] if value}
    print(*started, flush=True)
    signal.pause()
"""


def test_processes_end_when_their_parent_is_killed(tmp_path):
    """Without any output: no process is left to read it."""
    (tmp_path / "parent.py").write_text(PARENT)
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        processes = [psutil.Process(int(number)) for number in parent.stdout.readline().split()]
        parent.kill()
        assert parent.communicate(timeout=DEADLINE) == ("", "")  # the workers share the parent's stderr
    _gone, alive = psutil.wait_procs(processes, timeout=DEADLINE)
    assert alive == []


def test_there_is_at_least_one_core():
    assert 1 <= cores() <= os.cpu_count()
