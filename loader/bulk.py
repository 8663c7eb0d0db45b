"""Load a release by HFiles: the scoring job wrote one for each region, and HBase takes them over as they are.

HBase's bulk load moves the files, region by region, so a load can go on wherever an earlier one ended: a file that is
still in its folder has not been loaded. If a file is gone, it was loaded if its region holds it (loader/proof.py), or
holds its rows; otherwise it is written again, from the prediction lines.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

from loader.checkpoints import Checkpoint
from loader.compare import count_range
from loader.plan import Plan
from loader.proof import THREADS, Proof, prove
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


def can_load(settings: Settings, storage: Storage) -> bool:
    """Return whether HBase can take over a release's HFiles: they are on HDFS, and the command `hbase` is installed."""
    return storage.is_hdfs and find_command("hbase", settings.hadoop.bin) is not None


class HFileLoad:
    """Load a release by HFiles.

    Args:
        settings: where the command `hbase` is, and how many seconds it may take.
        folder: the release's folder.
        processes: how many files are written or checked at once.

    Raises:
        InputError: the command `hbase` is missing, or the storage is not HDFS.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder, processes: int) -> None:
        if not can_load(settings, folder.storage):
            raise InputError(
                f"{folder.path}: loading HFiles needs a storage on HDFS and the command `hbase` (hadoop.bin); "
                "otherwise use --via puts"
            )
        self._settings = settings
        self._folder = folder
        self._processes = processes
        self._written_again: set[int] = set()

    def load(
        self, connection: Connection, plan: Plan, rows: int, bar: Bar, _say: Callable[[str], None]
    ) -> list[RegionFacts]:
        """Load the regions that are not loaded yet, and return the facts about each region's file.

        Raises:
            InputError: there are files of other regions, or lines that are not prediction lines.
            VerificationError: a file is not what was written.
            InternalError, ServiceError: HBase did not take over the files, or not in time.
        """
        folder = self._folder
        facts, unmoved = _read_facts(folder, plan), _unmoved_files(folder, plan).keys()
        gone = {part: facts[part] for part in facts.keys() - unmoved}
        loaded = self._loaded(connection, plan, gone)
        to_write = [part for part in range(plan.parts) if part not in loaded | (unmoved & facts.keys())]
        self._written_again = gone.keys() & set(to_write)
        with bar("load", "rows") as progress:
            for event in run_tasks(partial(write_hfile, folder), to_write, self._processes):
                if event.done:
                    facts[to_write[event.task]] = event.value
            to_check = {part: facts[part] for part in sorted(facts.keys() - loaded) if facts[part].rows}
            to_read = list(_to_read(folder, plan, to_check).items())
            checked_rows = rows - sum(part_facts.rows for _part, part_facts in to_read)
            progress(checked_rows, rows)
            for event in run_tasks(partial(_check, folder), to_read, self._processes):
                if event.done:
                    checked_rows += to_read[event.task][1].rows
                    progress(checked_rows, rows)
            for attempt in range(ATTEMPTS):
                # Where HBase has to copy the files, they stay in their folder.
                if not _unmoved_files(folder, plan) or _bulk_load(
                    self._settings, folder, plan, is_last=attempt == ATTEMPTS - 1
                ):
                    break
        for part, part_facts in to_read:
            facts[part] = replace(part_facts, hdfs_checksum="")  # there is none, or it is not that of this copy
        return [facts[part] for part in range(plan.parts)]

    def prove(self, plan: Plan, parts: Sequence[Checkpoint | RegionFacts]) -> Proof:
        """Compare the files of the table's regions with the facts that `load` has returned."""
        by_part = {number: part for number, part in enumerate(parts) if isinstance(part, RegionFacts)}
        return prove(plan, self._folder.storage, self._settings.hbase.root, by_part, self._written_again)

    def _loaded(self, connection: Connection, plan: Plan, gone: Mapping[int, RegionFacts]) -> set[int]:
        """Return the regions that hold their files, of those whose files are gone."""
        proof = prove(plan, self._folder.storage, self._settings.hbase.root, gone)
        return proof.proved | {part for part in proof.doubts if _has_rows(connection, plan, part, gone[part])}


def _read_facts(folder: ReleaseFolder, plan: Plan) -> dict[int, RegionFacts]:
    """Return the facts about each file that was written, whether HBase has moved it or not."""
    names = set(folder.storage.names(f"{folder.path}/{HFILES}"))
    parts = [part for part in range(plan.parts) if facts_name(part) in names]
    paths = {part: f"{HFILES}/{facts_name(part)}" for part in parts}
    return {part: read(RegionFacts, folder.read(path), f"{folder.path}/{path}") for part, path in paths.items()}


def _unmoved_files(folder: ReleaseFolder, plan: Plan) -> dict[int, int]:
    """Return the sizes of the files that HBase has not moved yet, by region.

    Raises:
        InputError: there are files of other regions.
    """
    path = f"{folder.path}/{HFILES}/{FAMILY.decode()}"
    sizes = {part_number(name): size for name, size in folder.storage.sizes(path).items() if not name.startswith(".")}
    if extra := sizes.keys() - set(range(plan.parts)):
        name = part_name(min(extra))
        raise InputError(f"{path}/{name}: unexpected file, the release has {plan.parts} regions; start a new release")
    return sizes


def _has_rows(connection: Connection, plan: Plan, part: int, facts: RegionFacts) -> bool:
    region = count_range(connection, plan.table, plan.range(part), lambda _rows: None)
    return (region.rows, region.id_digest) == (facts.rows, facts.id_digest)


def write_hfile(folder: ReleaseFolder, part: int, report: Report) -> RegionFacts:
    """Write a region's HFile from its prediction lines, as the scoring job does."""
    rows = 0
    with tempfile.TemporaryDirectory(prefix="predictions.") as scratch:
        with RegionFile(scratch, part, folder.manifest.columns) as file:
            for block in folder.blocks(folder.part("scored", part)):
                file.write(block)
                rows += block.count(b"\n")
                report(rows)

        def put(name: str) -> None:
            with open(os.path.join(scratch, name), "rb") as source:
                folder.put(f"{HFILES}/{name}", source)

        # The facts first: facts without a file are taken for those of a moved file, which is then looked for in the
        # table; a file next to the facts of an earlier one would be refused.
        put(facts_name(part))
        if rows:
            put(hfile_name(part))
            path = f"{folder.path}/{HFILES}/{hfile_name(part)}"
            _check(folder, (part, file.facts), report)
            with folder.storage.reachable(), suppress(FileNotFoundError):  # HBase may have it, see `_check`
                file.set_hdfs_checksum(folder.storage.checksum(path))
                put(facts_name(part))
    return file.facts


def _to_read(folder: ReleaseFolder, plan: Plan, facts: Mapping[int, RegionFacts]) -> dict[int, RegionFacts]:
    """Check files by length and HDFS checksum, a request each; return those that have to be read to be checked.

    Raises:
        VerificationError: a file has rows of another region.
    """
    for part, part_facts in facts.items():
        first, stop = plan.range(part)
        if part_facts.bounds[0] < first or (stop and part_facts.bounds[1] >= stop):
            raise VerificationError(
                f"{folder.path}/{HFILES}/{hfile_name(part)}: it has rows {part_facts.first} to {part_facts.last}, "
                f"which do not belong to region {part}; remove the file and load again"
            )
    sizes = _unmoved_files(folder, plan)

    def is_as_written(part: int) -> bool:
        if sizes.get(part, facts[part].size) != facts[part].size or not facts[part].hdfs_checksum:
            return False
        path = f"{folder.path}/{HFILES}/{hfile_name(part)}"
        try:
            with folder.storage.reachable():
                return folder.storage.checksum(path) == facts[part].hdfs_checksum
        except FileNotFoundError:  # see `_check`
            return True

    with ThreadPoolExecutor(THREADS) as pool:
        checked = dict(zip(facts, pool.map(is_as_written, facts), strict=True))
    return {part: facts[part] for part in facts if not checked[part]}


def _check(folder: ReleaseFolder, task: tuple[int, RegionFacts], report: Report) -> None:
    """Read a file, and raise VerificationError unless its SHA-256 is that of the file as written.

    The bulk load of a killed run may still be at work: a file that it has moved by now is gone, and is looked for in
    the table at the end.
    """
    part, facts = task
    report(None)
    path, digest = f"{folder.path}/{HFILES}/{hfile_name(part)}", hashlib.sha256()
    try:
        with folder.storage.reachable():
            for data in folder.storage.stream(path):
                digest.update(data)
    except FileNotFoundError:
        return
    if digest.hexdigest() != facts.sha256:
        # HBase would not notice: where its own checksums fail, it trusts those of HDFS.
        raise VerificationError(
            f"{path}: its SHA-256 is not that of the file as written; remove the file and load again"
        )


def _bulk_load(settings: Settings, folder: ReleaseFolder, plan: Plan, is_last: bool) -> bool:
    """Have HBase take over the files that are left, and return whether the command succeeded.

    Whether HBase has them is checked later, by `prove` or by counting.
    """
    hbase = find_command("hbase", settings.hadoop.bin)
    assert hbase
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    command = [hbase, _TOOL, *options, f"hdfs://{folder.path}/{HFILES}", plan.table]
    timeout = settings.hbase.load_timeout
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ServiceError(
            f"HBase did not take over the files of {folder.path}/{HFILES} in {timeout:g} s (hbase.load_timeout); is it "
            "running (hadoop/cluster status)?"
        ) from error
    if process.returncode and is_last:
        errors = complaints(process.stderr) or ["no message"]
        raise InternalError(f"HBase's bulk load of {folder.path}/{HFILES} failed: {errors[-1]}; load again")
    return not process.returncode
