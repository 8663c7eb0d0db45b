"""Report what the suite costs: seconds and started processes by file, and the slowest tests and fixtures.

Processes are found by reading /proc twenty times a second, so shorter ones may be missed. All descendants of the test
process count, and of the shared cluster's NodeManager those of jobs that the tests submitted, by the name of their
project. A job is a JVM of `hadoop jar`, on YARN or not.
"""

import os
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

SLOWEST = 25
LOOK_SECONDS = 0.05
SETTLED_SECONDS = 1.0  # a process has executed its final program after this time
NODE_MANAGER = (
    Path(os.environ.get("CLUSTER_DIR") or Path(__file__).parent.parent / "var" / "cluster") / "run/nodemanager"
)


class Processes(threading.Thread):
    """Count the descendants of this process, by kind: python, jvm, job, other."""

    def __init__(self):
        super().__init__(daemon=True, name="costs")
        self.counts = Counter()
        self._pids = set(map(int, filter(str.isdigit, os.listdir("/proc"))))
        self._ours, self._node_managers = {os.getpid()}, set()
        self._young = {}  # by process ID: when first seen, kind, whether it counts (None: not known yet)
        self.projects = set()  # their names

    def run(self):
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self):
        now = time.monotonic()
        pids = set(map(int, filter(str.isdigit, os.listdir("/proc"))))
        for pid in sorted(pids - self._pids):
            parent = _parent(pid)
            for family in (self._ours, self._node_managers):
                if parent in family:
                    family.add(pid)
                    self._young[pid] = (now, "other", family is self._ours or None)
        self._pids = pids
        self._ours &= pids
        self._node_managers &= pids
        for pid, (since, kind, is_ours) in list(self._young.items()):
            kind = _kind(pid) or kind
            if is_ours is None:
                is_ours = self._is_of_our_job(pid)
            if now - since > SETTLED_SECONDS or pid not in pids:
                del self._young[pid]
                if is_ours:
                    self.counts[kind] += 1
                    self.counts["jvm"] += kind == "job"
            else:
                self._young[pid] = (since, kind, is_ours)

    def adopt(self):
        """Count also the processes that the shared cluster's NodeManager starts for the tests' jobs."""
        try:
            self._node_managers.add(int(NODE_MANAGER.read_text().partition('"pid": ')[2].partition(",")[0]))
        except (OSError, ValueError):
            return

    def _is_of_our_job(self, pid):
        """Return whether a container belongs to a job of the tests; None while its folder has no job.xml."""
        try:
            job = Path(f"/proc/{pid}/cwd/job.xml").read_text(errors="replace")
        except OSError:
            return None
        return any(project in job for project in self.projects)


def _parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _kind(pid):
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    program = words[0].rpartition(b"/")[2]
    if program == b"java":
        return "job" if b"org.apache.hadoop.util.RunJar" in words else "jvm"
    return "python" if program.startswith(b"python") else "other" if program else None


class Costs:
    """Measure what the tests cost in each process that runs tests, and print it at the end."""

    def __init__(self):
        self._processes = Processes()
        self.projects = self._processes.projects
        self._before = Counter()
        self._fixtures = []
        self.seconds = defaultdict(float)
        self.tests = Counter()
        self.started = defaultdict(Counter)
        self.slow = []

    def pytest_sessionstart(self, session):
        if not hasattr(session.config, "workerinput") and session.config.getoption("numprocesses", None):
            return  # xdist's workers count
        self._processes.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            self._fixtures.append((f"{fixturedef.argname} ({request.node.nodeid})", time.perf_counter() - began))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        if item.get_closest_marker("cluster"):
            self._processes.adopt()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item):
        try:
            return (yield)
        finally:
            counts = Counter(self._processes.counts)
            item.user_properties.append(("started", dict(counts - self._before)))
            item.user_properties.append(("fixtures", self._fixtures))
            self._before, self._fixtures = counts, []

    def pytest_runtest_logreport(self, report):
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration
        if report.when == "call":
            self.slow.append((report.duration, report.nodeid))
        if report.when == "teardown":
            self.tests[file] += 1
            costs = dict(report.user_properties)
            self.started[file].update(costs.get("started", {}))
            self.slow += [(seconds, f"fixture {name}") for name, seconds in costs.get("fixtures", ())]

    def pytest_terminal_summary(self, terminalreporter):
        if not self.tests or hasattr(terminalreporter.config, "workerinput"):
            return
        write = terminalreporter.write_line
        terminalreporter.section("seconds and started processes by file")
        write(f"{'seconds':>8} {'tests':>6} {'python':>7} {'JVMs':>5} {'jobs':>5} {'other':>6}  file")
        for file in sorted(self.seconds, key=self.seconds.get, reverse=True):
            write(self._line(self.seconds[file], self.tests[file], self.started[file], file))
        write(
            self._line(sum(self.seconds.values()), self.tests.total(), sum(self.started.values(), Counter()), "in all")
        )
        terminalreporter.section(f"the {SLOWEST} slowest tests and fixtures")
        for seconds, name in sorted(self.slow, reverse=True)[:SLOWEST]:
            write(f"{seconds:8.1f}  {name}")

    @staticmethod
    def _line(seconds, tests, started, name):
        kinds = "{:7} {:5} {:5} {:6}".format(*(started[kind] for kind in ("python", "jvm", "job", "other")))
        return f"{seconds:8.1f} {tests:6} {kinds}  {name}"
