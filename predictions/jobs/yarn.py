"""Ask YARN about its nodes and applications, with its own command-line clients."""

import re
import subprocess
import time
from collections.abc import Iterator

from predictions.errors import ServiceError

CLIENT = "org.apache.hadoop.yarn.client.cli"
LOGS_TIMEOUT = 30.0  # seconds to wait for the attempts' logs of a failed job
UNREACHABLE = "YARN does not answer; is the cluster running (hadoop/cluster status)?"

# If YARN is not running, fail in seconds, not in a quarter of an hour.
_LIMITS = (
    "-Dyarn.resourcemanager.connect.max-wait.ms=5000",
    "-Dyarn.resourcemanager.connect.retry-interval.ms=1000",
    "-Dipc.client.connect.max.retries=1",
)
_NODE = re.compile(r"^\s*(\S+:\d+)\s+([A-Z]+)\s", re.MULTILINE)


def refused(text: str) -> bool:
    """Return whether a client's output says that no server answered."""
    return "Connection refused" in text or "ConnectException" in text


def complaints(text: str) -> list[str]:
    """Return the lines of a Java client's output that report an error."""
    return [line for line in text.splitlines() if "ERROR" in line or "Exception" in line]


def usable_nodes(hadoop: str) -> str:
    """Return a line about the nodes that can run tasks and those that cannot.

    Args:
        hadoop: the path of the command `hadoop`.

    Raises:
        ServiceError: YARN does not answer, or no node can run a task, so a job would wait for ever.
    """
    states = dict(_NODE.findall(_ask(hadoop, "NodeCLI", "-list", "-all")))
    running = sum(state == "RUNNING" for state in states.values())
    unhealthy = "; ".join(f"{node}: {_health(hadoop, node)}" for node, state in states.items() if state == "UNHEALTHY")
    if not running:
        cure = "free or repair the node's disks"
        reason = f"unhealthy: {unhealthy}; {cure}" if unhealthy else "no node is registered; start a NodeManager"
        raise ServiceError(f"no YARN node can run a task, so a job would wait for ever; {reason}")
    return f"{running} of {len(states)} nodes can run tasks" + (f"; unhealthy: {unhealthy}" if unhealthy else "")


def application_report(hadoop: str, application: str) -> str:
    """Return YARN's report on an application (`State : …` and so on); an empty text if YARN does not know it.

    Raises:
        ServiceError: YARN does not answer.
    """
    report = _ask(hadoop, "ApplicationCLI", "-status", application)
    return report if "State : " in report else ""


def kill_application(hadoop: str, application: str) -> None:
    """Kill an application, if YARN knows it."""
    _ask(hadoop, "ApplicationCLI", "-kill", application)


def attempt_logs(application: str, hadoop: str, timeout: float = LOGS_TIMEOUT) -> Iterator[str]:
    """Yield the lines of the logs of an application's containers, which YARN collects some seconds after its end.

    Args:
        application: the application's ID, `application_…`.
        hadoop: the path of the command `hadoop`.
        timeout: seconds to wait for the logs; without logs by then, no lines are yielded.
    """
    deadline = time.monotonic() + timeout
    command = [hadoop, f"{CLIENT}.LogsCLI", "-applicationId", application]
    while True:
        has_logs = False
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
                has_logs = has_logs or line.startswith("LogContents")
                yield line
        if has_logs or time.monotonic() > deadline:
            return
        time.sleep(1)


def _health(hadoop: str, node: str) -> str:
    report = re.search(r"Health-Report : (.*)", _ask(hadoop, "NodeCLI", "-status", node))
    return report[1].strip() if report else "no report"


def _ask(hadoop: str, client: str, *arguments: str) -> str:
    # ApplicationCLI kills only if its first argument is `application`, which the `yarn` script adds.
    name = ["application"] if client == "ApplicationCLI" else []
    command = [hadoop, f"{CLIENT}.{client}", *name, *_LIMITS, *arguments]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if refused(process.stderr):
        raise ServiceError(UNREACHABLE)
    # A client also fails if it is asked for something that does not exist; that is an answer.
    if process.returncode and not re.search(r"doesn't exist|Could not find", process.stdout + process.stderr):
        lines = [line for line in process.stderr.splitlines() if line.strip()] or ["no message"]
        errors = complaints(process.stderr) or lines[-1:]
        raise ServiceError(f"YARN's client failed: {errors[0]}")
    return process.stdout
