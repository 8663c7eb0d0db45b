"""Score a release without Hadoop: the same two scripts as processes of this machine, with coreutils' `sort` between.

The runner `pipe` is the plain pipe, `mapper | sort | reducer`. The runner `local` works like a job on one machine: each
core has a mapper, which takes the next block of lines as soon as it is free; its output is sorted and cut into pieces
at the split points; then each region has a reducer, which gets the merged pieces of the region. Memory does not grow
with the release: it holds blocks and sort's buffers.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

from predictions.errors import InputError, InternalError, RefusedError
from predictions.formats import counters
from predictions.formats.document import to_file
from predictions.formats.manifest import MODEL_MANIFEST
from predictions.formats.record_line import bytes_before, read_blocks
from predictions.formats.row_key import key_range, split_points
from predictions.formats.unreadable import Unreadable
from predictions.jobs.bundle import script
from predictions.processes import Processes, uninterrupted
from predictions.stages.compare import compared_labels, lines_of
from predictions.storage import ReleaseFolder
from predictions.task.current import CURRENT_FILE, Current
from predictions.task.environment import ONE_THREAD

SORT_MEMORY = "96M"  # of each process; sort merges more than that from files
MAP_SHARE = 0.9  # of the progress; the rest is for the reducers
COPY_BYTES = 1 << 20


class LocalRun:
    """A run that scores a release.

    Args:
        regions: how many regions, so part files, to write.
        folder: a release that was exported and has a model.
        pipe: run one process of each script, rather than a mapper a core and a reducer a region.
        carry: the release whose lines unchanged records keep; None to score every record.

    Raises:
        InputError: there is no `sort` command.
    """

    makes_output = False

    def __init__(self, regions: int, folder: ReleaseFolder, pipe: bool, carry: ReleaseFolder | None) -> None:
        if not shutil.which("sort"):
            raise InputError("sort: no such command; install GNU coreutils")
        self._points = split_points(regions)
        self._folder = folder
        self._is_pipe = pipe
        self._carry = carry
        self._cores = 1 if pipe else len(os.sched_getaffinity(0))
        self._input = _Input(folder)

    def run(self, output: str, progress: Callable[[float], None]) -> counters.Outcome:
        """Write `output/part-*` and return the outcome.

        Raises:
            InternalError: a process failed.
        """
        on_disk = None if self._folder.storage.is_hdfs else self._folder.path
        with tempfile.TemporaryDirectory(prefix="_run.", dir=on_disk) as folder:
            scratch = Path(folder)
            for name in self._folder.models.task_files:
                (scratch / name).write_bytes(self._folder.read(f"model/{name}"))
            processes = Processes(scratch)
            # A mapper needs a thread that feeds it and one that reads its output; a reducer needs one.
            with ThreadPoolExecutor(2 * self._cores) as maps, ThreadPoolExecutor(self._cores) as reduces:
                try:
                    if self._is_pipe:
                        self._pipe(processes, scratch, output, maps, progress)
                    else:
                        self._local(processes, scratch, output, maps, reduces, progress)
                finally:
                    # End the processes before the pools wait for their threads, which wait for the processes.
                    self._input.stop()
                    processes.end()
                    reduces.shutdown(cancel_futures=True)
            return counters.Outcome(counters.parse_lines(processes.said()))

    def finish(self) -> None:
        """Keep nothing: the run has no other results, and `activate` compares the releases."""

    def locate(self, line: Unreadable) -> Unreadable:
        """Return the line with its file and its number there, since a mapper here reads blocks of several files."""
        file, number = self._input.locate(int(line.split), line.number)
        return line._replace(split=f"{file}+0", number=number)

    def _pipe(
        self,
        processes: Processes,
        scratch: Path,
        output: str,
        pool: ThreadPoolExecutor,
        progress: Callable[[float], None],
    ) -> None:
        options = self._reducer_options(scratch, [])
        self._write_served(scratch, 0, [])
        with uninterrupted():
            feed, mapped = self._map(0, processes, scratch, pool, progress)
            ordered = processes.start(_sort(scratch), mapped, _BYTES).stdout
            reduced = _reduce(processes, ordered, options)
            write = pool.submit(cut, reduced, self._points, partial(self._part, output))
        _wait([feed, write], processes)

    def _local(
        self,
        processes: Processes,
        scratch: Path,
        output: str,
        maps: ThreadPoolExecutor,
        reduces: ThreadPoolExecutor,
        progress: Callable[[float], None],
    ) -> None:
        points = [point.decode() for point in self._points]
        options = self._reducer_options(scratch, points)

        def reduce(region: int) -> None:
            pieces = [str(_piece(scratch, core, region)) for core in range(self._cores)]
            self._write_served(scratch, region, points)
            merged = processes.start([*_sort(scratch), "--merge", *pieces], subprocess.DEVNULL, _BYTES)
            with (
                _reduce(processes, merged.stdout, [*options, "--region", str(region)]) as reduced,
                self._part(output, region) as part,
            ):
                shutil.copyfileobj(reduced, part, COPY_BYTES)
            for piece in pieces:
                os.unlink(piece)
            _served_lines(scratch, region).unlink(missing_ok=True)  # the next regions' lines need the room

        tasks = []
        with uninterrupted():
            for core in range(self._cores):
                feed, mapped = self._map(core, processes, scratch, maps, lambda share: progress(MAP_SHARE * share))
                ordered = processes.start(_sort(scratch), mapped, _BYTES).stdout
                assert ordered
                create = partial(_create_piece, scratch, core)
                tasks += [feed, maps.submit(cut, ordered, self._points, create)]
        _wait(tasks, processes)
        with uninterrupted():
            tasks = [reduces.submit(reduce, region) for region in range(len(self._points) + 1)]
        _wait(tasks, processes, lambda share: progress(MAP_SHARE + (1 - MAP_SHARE) * share))

    def _map(
        self,
        core: int,
        processes: Processes,
        scratch: Path,
        pool: ThreadPoolExecutor,
        progress: Callable[[float], None],
    ) -> "tuple[Future[None], IO[bytes]]":
        options = ["--split", str(core), *(["--unscored"] if self._carry else [])]
        command = _script("mapper.py", str(scratch / MODEL_MANIFEST), self._folder.release, *options)
        mapper = processes.start(command, subprocess.PIPE, ONE_THREAD)
        assert mapper.stdin
        assert mapper.stdout
        return pool.submit(self._input.feed, core, mapper.stdin, progress), mapper.stdout

    def _reducer_options(self, scratch: Path, points: list[str]) -> list[str]:
        """Return the options that make a reducer carry over the lines that `_write_served` writes for its region."""
        if not self._carry:
            return []
        paths = [str(_served_lines(scratch, region)) for region in range(len(points) + 1)]
        labels, columns = compared_labels(self._carry, self._folder), self._folder.models.columns
        served = Current.of(self._carry.release, labels, points, paths, points, columns)
        (scratch / CURRENT_FILE).write_bytes(to_file(served))
        model = ["--score", str(scratch / MODEL_MANIFEST), self._folder.release]
        return ["--current", str(scratch / CURRENT_FILE), *model]

    def _write_served(self, scratch: Path, region: int, points: list[str]) -> None:
        if self._carry:
            with open(_served_lines(scratch, region), "wb") as file:
                file.writelines(lines_of(self._carry, *key_range(points, region)))

    def _part(self, output: str, region: int) -> BinaryIO:
        return self._folder.create(f"{output}/part-{region:05d}")


_BYTES = {"LC_ALL": "C"}  # compare row keys as bytes, as Hadoop and HBase do


def _sort(scratch: Path) -> list[str]:
    limits = [f"--buffer-size={SORT_MEMORY}", "--parallel=1", f"--temporary-directory={scratch}"]
    return ["sort", "-t", "\t", "-k1,1", "-s", *limits]


def _script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(script(name)), *arguments]


def _reduce(processes: Processes, ordered: Any, options: list[str]) -> IO[bytes]:
    stdout = processes.start(_script("reducer.py", *options), ordered, ONE_THREAD, _is_refusal).stdout
    assert stdout
    return stdout


def _is_refusal(code: int, stderr: str) -> bool:
    """Return whether a reducer wrote all lines and counters before its error; `score` sees from the counters why."""
    return code in (InputError.exit_code, RefusedError.exit_code) and bool(counters.parse_lines(stderr))


def _served_lines(scratch: Path, region: int) -> Path:
    return scratch / f"current.{region}"


def _piece(scratch: Path, core: int, region: int) -> Path:
    return scratch / f"piece.{core}.{region}"


def _create_piece(scratch: Path, core: int, region: int) -> BinaryIO:
    return open(_piece(scratch, core, region), "wb")


def _wait(
    tasks: "Sequence[Future[None]]", processes: Processes, progress: Callable[[float], None] = lambda _share: None
) -> None:
    """Wait for threads and then for their processes; if one failed, raise its error rather than a consequence."""
    try:
        for number, task in enumerate(as_completed(tasks), 1):
            task.result()
            progress(number / len(tasks))
    except BrokenPipeError as error:
        processes.fail()  # the error of the process at the other end says more
        raise InternalError("a process of the run closed its input before the end") from error
    processes.check()


def cut(stream: IO[bytes], points: Sequence[bytes], create: Callable[[int], BinaryIO]) -> None:
    """Copy sorted prediction lines into one file a region.

    Args:
        stream: the lines, in the order of their row keys; closed at the end.
        points: the split points between the regions.
        create: opens the file of a region, given its number; called once for each region, in order.
    """
    region, file = 0, create(0)
    with stream:
        try:
            for block in read_blocks(stream):
                while region < len(points) and block[block.rfind(b"\n", 0, -1) + 1 :] >= points[region]:
                    end = bytes_before(block, points[region])
                    file.write(block[:end])
                    file.close()
                    region += 1
                    file = create(region)
                    block = block[end:]
                file.write(block)
            for empty_region in range(region + 1, len(points) + 1):
                file.close()
                file = create(empty_region)
        finally:
            file.close()


class _Input:
    """The exported lines in blocks, given to the mappers one after the other as they become free."""

    def __init__(self, folder: ReleaseFolder) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._blocks = _read(folder)
        self._total = folder.manifest.export.bytes
        self._given_bytes = 0  # given to mappers so far
        self._given: dict[int, list[tuple[str, int, int]]] = {}  # by mapper: file, first line, number of lines

    def feed(self, mapper: int, stdin: IO[bytes], progress: Callable[[float], None]) -> None:
        """Write blocks to a mapper's stdin until there are no more."""
        with stdin:
            while block := self._next(mapper):
                stdin.write(block)
                progress(min(self._given_bytes / self._total, 1.0))

    def _next(self, mapper: int) -> bytes | None:
        with self._lock:
            if self._stopped or not (entry := next(self._blocks, None)):
                return None
            file, first, block = entry
            self._given.setdefault(mapper, []).append((file, first, block.count(b"\n")))
            self._given_bytes += len(block)
            return block

    def stop(self) -> None:
        """Give out no more blocks."""
        self._stopped = True

    def locate(self, mapper: int, number: int) -> tuple[str, int]:
        """Return the file of a mapper's line, and the line's number in that file."""
        for file, first, lines in self._given[mapper]:
            if number <= lines:
                return file, first + number - 1
            number -= lines
        raise ValueError(f"mapper {mapper} did not get that many lines")


def _read(folder: ReleaseFolder) -> Iterator[tuple[str, int, bytes]]:
    for path in folder.files("export"):
        first = 1
        for block in folder.blocks(path):
            yield path.rpartition("/")[2], first, block
            first += block.count(b"\n")
