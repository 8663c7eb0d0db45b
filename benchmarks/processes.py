"""Where the processor time goes: of each kind of process while a block runs, and within its threads.

The threads of all processes are sampled from `/proc`. What a process uses after its last sample is not seen, so the sum
is a little less than what the cores worked.
"""

import re
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

SAMPLE_SECONDS = 0.5  # between two samples
TICKS = 100.0  # of Linux's clock for processor time, in a second

_COMMAND_BYTES = 1 << 16
# The first pattern that is found in a process's command line names its kind.
_KINDS = {
    r"MRAppMaster": "application master",
    r"YarnChild.*attempt_\w+_m_\d+": "map task, Java",
    r"YarnChild.*attempt_\w+_r_\d+": "reduce task, Java",
    r"mapper\.py": "mapper.py",
    r"reducer\.py": "reducer.py",
    r"RunJar": "`hadoop jar`",
    r"RegionSplitter": "`hbase`, makes the table",
    r"BulkLoadHFilesTool": "`hbase`, bulk load",
    r"NameNode": "NameNode",
    r"DataNode": "DataNode",
    r"ResourceManager": "ResourceManager",
    r"NodeManager": "NodeManager",
    r"HRegionServer": "region server",
    r"HMaster": "HBase master",
    r"ThriftServer": "Thrift server",
    r"HQuorumPeer": "ZooKeeper",
    r"python.*(multiprocessing|benchmarks)": "the commands, Python",
}
_THREADS = {r"C[12] Compiler": "compiler", r"GC |G1 |VM ": "garbage collector"}


class ProcessTimes:
    """A context manager that adds up the processor time of all processes while its block runs.

    `seconds` has the seconds of a processor for each kind of process, with those of the JVM's own threads apart.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, Counter[str]] = defaultdict(Counter)
        self._last: dict[tuple[str, str], float] = {}  # by process and thread
        self._kinds: dict[str, str] = {}
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self._sample(counts=False)
        self._pool = ThreadPoolExecutor(1)
        self._sampling = self._pool.submit(self._run)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end.set()
        self._sampling.result()
        self._pool.shutdown()
        self._sample()

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self, counts: bool = True) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                kind = self._kinds.get(process.name) or self._kind(process)
                for thread in (process / "task").iterdir():
                    name, _bracket, fields = (thread / "stat").read_text().rpartition(") ")
                    user, system = map(float, fields.split()[11:13])
                    key, total = (process.name, thread.name), (user + system) / TICKS
                    if counts:
                        self.seconds[kind][_group(name)] += total - self._last.get(key, 0.0)
                    self._last[key] = total
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended

    def _kind(self, process: Path) -> str:
        with open(process / "cmdline", "rb") as file:
            command = file.read(_COMMAND_BYTES).replace(b"\0", b" ").decode(errors="replace")
        kind = next((kind for pattern, kind in _KINDS.items() if re.search(pattern, command)), "others")
        if kind != "others":  # a shell may become another program
            self._kinds[process.name] = kind
        return kind


def _group(name: str) -> str:
    return next((group for pattern, group in _THREADS.items() if re.search(pattern, name)), "work")


def table(seconds: dict[str, Counter[str]]) -> str:
    """Return the seconds as a table, the largest first."""
    groups = ("work", *_THREADS.values())
    lines = [f"{'seconds of a core':28}{'all':>8}" + "".join(f"{group:>20}" for group in groups)]
    for kind, by_group in sorted(seconds.items(), key=lambda item: -sum(item[1].values())):
        if (total := sum(by_group.values())) >= 0.05:
            lines.append(f"{kind:28}{total:8.1f}" + "".join(f"{by_group[group]:20.1f}" for group in groups))
    return "\n".join(lines)
