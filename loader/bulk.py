"""The loader by HFiles: the scoring job wrote one for each region, and HBase takes them over as they are.

HBase's bulk load moves the files, region by region, so whatever ended an earlier run leaves no doubt: a file that is
there is to be loaded; one that is not was loaded, if its region holds its rows, and else is written again, from the
prediction lines.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial

from loader.compare import count_range
from loader.plan import Plan
from predictions.errors import InputError, InternalError, ServiceError, VerificationError
from predictions.formats.document import read
from predictions.formats.hfile.region_file import RegionFacts, RegionFile, facts_name, hfile_name
from predictions.formats.names import part_name, part_number
from predictions.formats.prediction_line import FAMILY
from predictions.hbase.connection import Connection
from predictions.jobs.streaming import find_command
from predictions.jobs.yarn import complaints
from predictions.progress import Bar
from predictions.settings import Settings
from predictions.storage import HFILES, ReleaseFolder, Storage
from predictions.workers import Report, run_tasks

ATTEMPTS = 3
_TOOL = "org.apache.hadoop.hbase.tool.BulkLoadHFilesTool"
_OPTIONS = {"create.table": "no", "hbase.bulkload.retries.retryOnIOException": "true"}
_READ_BYTES = 4 << 20


def can_load(settings: Settings, storage: Storage) -> bool:
    """Whether HBase can be handed a release's HFiles: they are on HDFS, and the command `hbase` is here."""
    return storage.is_hdfs and find_command("hbase", settings.hadoop.bin) is not None


class HFileLoad:
    """A load by HFiles.

    Args:
        settings: where the command `hbase` is, and how long it may take.
        folder: the release's.
        processes: how many files are written or checked at once.

    Raises:
        InputError: `hbase` is not there, or the storage is not HDFS.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder, processes: int) -> None:
        if not can_load(settings, folder.storage):
            raise InputError(
                f"{folder.path}: HFiles are loaded from HDFS, with the command `hbase` (hadoop.bin); use --via puts"
            )
        self._settings = settings
        self._folder = folder
        self._processes = processes

    def load(
        self, connection: Connection, plan: Plan, rows: int, bar: Bar, _say: Callable[[str], None]
    ) -> list[RegionFacts]:
        """Load what is not loaded yet, and return what is known of each region's file.

        Raises:
            InputError: there are files of other regions, or prediction lines that are none.
            VerificationError: a file is not what was written.
            InternalError, ServiceError: HBase did not take them, or not in time.
        """
        folder = self._folder
        facts, there = _facts(folder, plan), _there(folder, plan)
        loaded = {part for part in facts.keys() - there if _is_loaded(connection, plan, part, facts[part])}
        missing = [part for part in range(plan.parts) if part not in loaded | (there & facts.keys())]
        with bar("load", "rows") as progress:
            for event in run_tasks(partial(_write, folder), missing, self._processes):
                if event.done:
                    facts[missing[event.task]] = event.value
            waiting = [(part, facts[part]) for part in sorted(facts.keys() - loaded) if facts[part].rows]
            good = rows - sum(known.rows for _part, known in waiting)
            for event in run_tasks(partial(_check, folder, plan), waiting, self._processes):
                if event.done:
                    good += waiting[event.task][1].rows
                    progress(good, rows)
            for attempt in range(ATTEMPTS):
                if _there(folder, plan):
                    _bulk_load(self._settings, folder, plan, is_last=attempt == ATTEMPTS - 1)
        return [facts[part] for part in range(plan.parts)]


def _facts(folder: ReleaseFolder, plan: Plan) -> dict[int, RegionFacts]:
    """Return what is known of each file that was written, wherever it is now."""
    names = set(folder.storage.names(f"{folder.path}/{HFILES}"))
    parts = [part for part in range(plan.parts) if facts_name(part) in names]
    paths = {part: f"{HFILES}/{facts_name(part)}" for part in parts}
    return {part: read(RegionFacts, folder.read(path), f"{folder.path}/{path}") for part, path in paths.items()}


def _there(folder: ReleaseFolder, plan: Plan) -> set[int]:
    """Return the regions whose files were not moved yet; InputError where there are others."""
    path = f"{folder.path}/{HFILES}/{FAMILY.decode()}"
    parts = set(map(part_number, (name for name in folder.storage.names(path) if not name.startswith("."))))
    if extra := parts - set(range(plan.parts)):
        raise InputError(f"{path}/{part_name(min(extra))}: the release has {plan.parts} regions; score a new release")
    return parts


def _is_loaded(connection: Connection, plan: Plan, part: int, known: RegionFacts) -> bool:
    found = count_range(connection, plan.table, plan.range(part), lambda _rows: None)
    return (found.rows, found.id_digest) == (known.rows, known.id_digest)


def _write(folder: ReleaseFolder, part: int, report: Report) -> RegionFacts:
    """Write a region's HFile from its prediction lines, as the scoring job does."""
    rows = 0
    with tempfile.TemporaryDirectory(prefix="predictions.") as scratch:
        with RegionFile(scratch, part) as file:
            for block in folder.blocks(folder.part("scored", part)):
                file.write(block)
                rows += block.count(b"\n")
                report(rows)
        # Facts without a file are those of one that was moved; a file with another's facts would be refused.
        for name in (facts_name(part), *([hfile_name(part)] if rows else [])):
            with open(os.path.join(scratch, name), "rb") as source:
                folder.put(f"{HFILES}/{name}", source)
    return file.facts


def _check(folder: ReleaseFolder, plan: Plan, task: tuple[int, RegionFacts], report: Report) -> None:
    """Raise VerificationError unless a file is the one that was written, and its region's.

    One that the command of a load that was killed has moved meanwhile is not there: its rows are counted at the end.
    """
    part, known = task
    report(None)
    path = f"{folder.path}/{HFILES}/{hfile_name(part)}"
    first, stop = plan.range(part)
    if known.bounds[0] < first or (stop and known.bounds[1] >= stop):
        raise VerificationError(f"{path}: its rows are {known.first} to {known.last}, not those of region {part}")
    digest = hashlib.sha256()
    try:
        with folder.storage.reachable(), folder.storage.fs.open(path, "rb", block_size=_READ_BYTES) as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    except FileNotFoundError:
        return
    if digest.hexdigest() != known.sha256:
        # HBase would not mind: where its own checksums fail, it believes those of HDFS.
        raise VerificationError(f"{path}: it is not what was written, by its sha256; remove it and load again")


def _bulk_load(settings: Settings, folder: ReleaseFolder, plan: Plan, is_last: bool) -> None:
    """Have HBase take over the files that are there; whether it has is counted afterwards."""
    hbase = find_command("hbase", settings.hadoop.bin)
    assert hbase
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    command = [hbase, _TOOL, *options, f"hdfs://{folder.path}/{HFILES}", plan.table]
    patience = settings.hbase.load_timeout
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise ServiceError(
            f"HBase did not take over the files of {folder.path}/{HFILES} in {patience:g} s (hbase.load_timeout); is "
            "it running (hadoop/cluster status)?"
        ) from error
    if done.returncode and is_last:
        said = complaints(done.stderr) or ["no message"]
        raise InternalError(f"HBase's bulk load of {folder.path}/{HFILES} failed: {said[-1]}")
