"""Where processor time and memory go: of each kind of process while a block runs, and of processor time by threads.

All processes are sampled from `/proc`. What a process uses after its last sample is not seen, so the sum of the times
is a little less than what the cores worked.
"""

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

CHECKOUT = Path(__file__).resolve().parent.parent
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
# Of these the memory is measured.
_SCORING = {
    r"-m predictions|spawn_main": "predictions",
    r"^\S*python\S* .*mapper\.py": "mapper.py",
    r"^\S*python\S* .*reducer\.py": "reducer.py",
    r"^sort ": "sort",
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
        command = _command(process)
        kind = next((kind for pattern, kind in _KINDS.items() if re.search(pattern, command)), "others")
        if kind != "others":  # a shell may become another program
            self._kinds[process.name] = kind
        return kind


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Provide the peak memory in MB of the largest process of each kind that scores, once the block has ended.

    It is the peak that the kernel keeps (VmHWM). Only processes that work in this checkout count.
    """
    peaks: dict[str, float] = {}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS / 2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = _command(process)
                    kind = next((kind for pattern, kind in _SCORING.items() if re.search(pattern, command)), None)
                    if kind and process.joinpath("cwd").readlink().is_relative_to(CHECKOUT):
                        peak = int(re.findall(r"VmHWM:\s+(\d+)", (process / "status").read_text())[0])
                        peaks[kind] = max(peaks.get(kind, 0), round(peak * 1024 / 1e6, 1))
                except (OSError, IndexError):
                    continue  # it has ended

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _command(process: Path) -> str:
    with open(process / "cmdline", "rb") as file:
        return file.read(_COMMAND_BYTES).replace(b"\0", b" ").decode(errors="replace")


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
