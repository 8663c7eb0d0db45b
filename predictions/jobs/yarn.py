"""What YARN says of its nodes and its applications, asked with its own command-line clients."""

import re
import subprocess
import time
from collections.abc import Iterator

from predictions.errors import ServiceError

CLIENT = "org.apache.hadoop.yarn.client.cli"
LOGS_TIMEOUT = 30.0  # seconds until the attempts' logs of a failed job are gathered
UNREACHABLE = "YARN does not answer; is the cluster running (hadoop/cluster status)?"

# Fail in seconds, not in a quarter of an hour, where there is no YARN.
_LIMITS = (
    "-Dyarn.resourcemanager.connect.max-wait.ms=5000",
    "-Dyarn.resourcemanager.connect.retry-interval.ms=1000",
    "-Dipc.client.connect.max.retries=1",
)
_NODE = re.compile(r"^\s*(\S+:\d+)\s+([A-Z]+)\s", re.MULTILINE)


def refused(text: str) -> bool:
    """Whether what a client printed says that nobody answered."""
    return "Connection refused" in text or "ConnectException" in text


def complaints(text: str) -> list[str]:
    """Return the lines of what a Java client printed that say what went wrong."""
    return [line for line in text.splitlines() if "ERROR" in line or "Exception" in line]


def usable_nodes(hadoop: str) -> str:
    """Return a line on the nodes that can run tasks, and on those that cannot.

    Args:
        hadoop: the command.

    Raises:
        ServiceError: YARN does not answer, or no node can run a task: a job would wait for ever.
    """
    states = dict(_NODE.findall(_ask(hadoop, "NodeCLI", "-list", "-all")))
    running = sum(state == "RUNNING" for state in states.values())
    sick = "; ".join(f"{node}: {_health(hadoop, node)}" for node, state in states.items() if state == "UNHEALTHY")
    if not running:
        why = f"unhealthy: {sick}; free or repair that node's disks" if sick else "none is registered: start one"
        raise ServiceError(f"no YARN node can run a task, a job would wait for ever; {why}")
    return f"{running} of {len(states)} nodes can run tasks" + (f"; unhealthy: {sick}" if sick else "")


def application_report(hadoop: str, application: str) -> str:
    """Return what YARN says of an application, `State : …` and the like; nothing if it knows none.

    Raises:
        ServiceError: YARN does not answer.
    """
    told = _ask(hadoop, "ApplicationCLI", "-status", application)
    return told if "State : " in told else ""


def kill_application(hadoop: str, application: str) -> None:
    """End an application, if it is there."""
    _ask(hadoop, "ApplicationCLI", "-kill", application)


def attempt_logs(application: str, hadoop: str, timeout: float = LOGS_TIMEOUT) -> Iterator[str]:
    """Yield the lines of the logs of an application's containers; they are gathered some seconds after its end.

    Args:
        application: its ID, `application_…`.
        hadoop: the command.
        timeout: seconds to wait for them; none are yielded if they do not come.
    """
    deadline = time.monotonic() + timeout
    command = [hadoop, f"{CLIENT}.LogsCLI", "-applicationId", application]
    while True:
        some = False
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                some = some or line.startswith("LogContents")
                yield line
        if some or time.monotonic() > deadline:
            return
        time.sleep(1)


def _health(hadoop: str, node: str) -> str:
    report = re.search(r"Health-Report : (.*)", _ask(hadoop, "NodeCLI", "-status", node))
    return report[1].strip() if report else "no report"


def _ask(hadoop: str, client: str, *arguments: str) -> str:
    # ApplicationCLI kills nothing unless it is named `application`, as the `yarn` script does.
    name = ["application"] if client == "ApplicationCLI" else []
    command = [hadoop, f"{CLIENT}.{client}", *name, *_LIMITS, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if refused(done.stderr):
        raise ServiceError(UNREACHABLE)
    # A client fails too where it is asked for what is not there; that is an answer.
    if done.returncode and not re.search(r"doesn't exist|Could not find", done.stdout + done.stderr):
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        telling = complaints(done.stderr) or said[-1:]
        raise ServiceError(f"YARN's client failed: {telling[0]}")
    return done.stdout
