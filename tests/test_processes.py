"""The processes of a run, as real processes: which failure is reported if several failed, and that none runs on."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from predictions import processes as module
from predictions.errors import InternalError
from predictions.processes import Processes, uninterrupted

ENDLESS = "import sys\nwhile True: sys.stdout.write('x' * 9999)"


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.end()


def shell(processes, script, stdin=subprocess.DEVNULL, **environment):
    return processes.start(["sh", "-c", script], stdin, environment)


def python(processes, code, stdin=subprocess.DEVNULL):
    return processes.start([sys.executable, "-c", code], stdin, {})


def failure(processes):
    with pytest.raises(InternalError) as error:
        processes.check()
    return str(error.value)


def test_a_pipe_of_processes_that_all_succeed(processes):
    greeting = shell(processes, 'echo "$WORD"; echo said >&2', WORD="hello").stdout
    assert shell(processes, "tr a-z A-Z; echo also >&2", greeting).stdout.read() == b"HELLO\n"
    processes.check()
    assert processes.said() == "said\nalso\n"


def test_a_process_that_lost_its_reader_is_not_the_cause(processes):
    last = shell(processes, "echo sort: no space >&2; exit 2", python(processes, ENDLESS).stdout)
    assert last.stdout.read() == b""
    assert failure(processes) == "sh failed with exit code 2: sort: no space"


def test_a_process_killed_for_its_lost_reader_is_not_the_cause(processes):
    endless = processes.start(["yes"], subprocess.DEVNULL, {}).stdout
    shell(processes, "exit 3", endless)
    assert failure(processes) == "sh failed with exit code 3: it wrote nothing to stderr"


def test_of_several_failures_the_first_process_is_reported(processes):
    shell(processes, "echo one >&2; exit 1")
    shell(processes, "echo two >&2; exit 2")
    assert failure(processes) == "sh failed with exit code 1: one"


def test_a_lost_reader_is_reported_where_nothing_else_failed(processes):
    endless = python(processes, ENDLESS).stdout
    shell(processes, "exec true", endless).wait()
    assert "BrokenPipeError" in failure(processes)


@pytest.mark.parametrize("name", ["SEGV", "KILL", "TERM"])
def test_a_signal_is_called_by_its_name(processes, name):
    shell(processes, f"echo before >&2; kill -{name} $$")
    assert failure(processes) == f"sh was killed by SIG{name}: before"


def test_a_crash_is_reported_by_its_first_line_and_not_by_the_end_of_its_stack(processes):
    python(processes, "import faulthandler, os, signal\nfaulthandler.enable()\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert failure(processes).endswith(" was killed by SIGSEGV: Fatal Python error: Segmentation fault")


def test_a_script_is_named_by_its_file_and_its_own_name_is_not_repeated(processes, tmp_path):
    script = tmp_path / "mapper.py"
    script.write_text("import sys\nprint('mapper.py: no\\nreporter:counter:a,b,1\\n', file=sys.stderr)\nsys.exit(2)")
    processes.start([sys.executable, str(script)], subprocess.DEVNULL, {})
    assert failure(processes) == "mapper.py failed with exit code 2: no"


def test_processes_that_would_wait_for_ever_are_killed_after_a_failure(processes, monkeypatch):
    monkeypatch.setattr(module, "KILL_AFTER", 0.1)
    waiting = shell(processes, "exec sleep 600")
    shell(processes, "echo bad >&2; exit 1")
    with pytest.raises(InternalError, match="^sh failed with exit code 1: bad$"):
        processes.fail()
    assert waiting.returncode == -9


def test_the_end_kills_running_processes_and_prevents_new_ones(processes):
    running = [shell(processes, "exec sleep 600") for _ in range(3)]
    started = time.monotonic()
    processes.end()
    assert time.monotonic() - started < 60
    assert [process.returncode for process in running] == [-9] * 3
    assert not [process for process in running if psutil.pid_exists(process.pid)]
    with pytest.raises(InternalError, match="ended"):
        shell(processes, "true")
    processes.end()  # a second time does no harm


def test_the_end_changes_nothing_once_the_processes_have_exited(processes):
    shell(processes, "exit 0").wait()
    processes.end()
    processes.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_the_block(number):
    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    def run_block():
        with uninterrupted():
            signal.raise_signal(number)
            steps.append("the rest")

    steps, handler = [], signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_block()
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, handler)
    assert steps == ["the rest"]
