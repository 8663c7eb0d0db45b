"""Prove by HBase's files that a table holds exactly the HFiles that were written, at a cost per file, not per row.

A bulk load renames each HFile to `ROOT/data/default/TABLE/REGION/FAMILY/ID_SeqId_NUMBER_`, and a renamed file keeps the
checksum that HDFS has of it. So a region is proved if its folder has this one file, with the length and the checksum of
the HFile as written, and if the first and the last row that HBase reads there are those of the HFile.

Where that cannot be said, the rows have to be counted: HBase's folder may not be read, or the region was split, merged
or compacted, so that it has other borders, or files that HBase wrote. Any other file that was taken over is wrong.
"""

import re
from collections import deque
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice

from loader.plan import Plan
from predictions.errors import VerificationError
from predictions.formats.hfile.region_file import RegionFacts, hfile_name
from predictions.formats.prediction_line import FAMILY
from predictions.hbase.connection import Connection
from predictions.storage import Storage

THREADS = 8  # they wait for HDFS and HBase
_BULK_LOADED = re.compile(r"_SeqId_\d+_$")  # HBase gives this end to the name of a file that it has taken over


@dataclass
class Proof:
    """What HBase's files say about a table.

    Args:
        proved: the regions that hold exactly their HFile.
        mismatches: what other regions hold instead, by region.
        doubts: why neither can be said of a region, by region; its rows have to be counted.
    """

    proved: set[int] = field(default_factory=set)
    mismatches: dict[int, str] = field(default_factory=dict)
    doubts: dict[int, str] = field(default_factory=dict)


def prove(
    plan: Plan, storage: Storage, root: str, facts: Mapping[int, RegionFacts], written_again: Collection[int] = ()
) -> Proof:
    """Compare the files in the folders of a table's regions with the HFiles as written.

    Args:
        plan: of the load.
        storage: on the HDFS of HBase.
        root: the folder of HBase there.
        facts: about the HFiles, by region.
        written_again: regions that may hold their HFile twice: it was gone when it was written again, and the command
            of a killed load may have had it.

    Raises:
        ServiceError: HDFS or HBase cannot be reached.
    """
    proof = Proof()
    if not facts:
        return proof
    folders = _folders(plan, root)

    def examine(part: int) -> None:
        try:
            doubt = _examine(plan, storage, folders, part, facts[part], part in written_again)
        except VerificationError as error:
            proof.mismatches[part] = str(error)
            return
        if doubt:
            proof.doubts[part] = doubt
        else:
            proof.proved.add(part)

    with ThreadPoolExecutor(THREADS) as pool:
        deque(pool.map(examine, facts), maxlen=0)
    return proof


def _folders(plan: Plan, root: str) -> dict[tuple[bytes, bytes], str]:
    """Return the folder of each of the table's regions, by the region's range of row keys."""
    with Connection(plan.server) as connection:
        regions = connection.regions(plan.table)
    stops = [*(region.start for region in regions[1:]), b""]
    table = f"{root.rstrip('/')}/data/default/{plan.table}"
    return {
        (region.start, stop): f"{table}/{region.encoded_name}/{FAMILY.decode()}"
        for region, stop in zip(regions, stops, strict=False)
    }


def _examine(
    plan: Plan,
    storage: Storage,
    folders: Mapping[tuple[bytes, bytes], str],
    part: int,
    facts: RegionFacts,
    may_be_twice: bool,
) -> str | None:
    """Return None if a region holds exactly its HFile, or why that cannot be said.

    Raises:
        VerificationError: it holds something else.
    """
    hfile, folder = hfile_name(part), folders.get(plan.range(part))
    if folder is None:
        return "the table has other regions"
    if facts.rows and not facts.hdfs_checksum:
        return f"the HDFS checksum of {hfile} is not known"
    with storage.reachable():
        try:
            sizes = {file["name"].rpartition("/")[2]: int(file["size"]) for file in storage.fs.ls(folder, detail=True)}
            if bool(sizes) != bool(facts.rows) or not all(map(_BULK_LOADED.search, sizes)):
                return f"{folder} has {'other files' if sizes else 'no file'}"
            checksums = {name: storage.checksum(f"{folder}/{name}") for name in sizes}
        except PermissionError:
            return f"user {storage.user} may not read {folder}"
        except FileNotFoundError:
            return f"{folder} or a file in it does not exist"
    for name, checksum in checksums.items():
        if not checksum:
            return f"HDFS does not tell the checksum of {folder}/{name}"
        if (sizes[name], checksum) != (facts.size, facts.hdfs_checksum):
            raise VerificationError(f"{hfile}: HBase's file {folder}/{name} is not the one that was written")
    if len(sizes) > 1 and not may_be_twice:
        raise VerificationError(f"{hfile}: HBase has it {len(sizes)} times, in {folder}")
    _check_ends(plan, part, facts)
    return None


def _check_ends(plan: Plan, part: int, facts: RegionFacts) -> None:
    """Raise VerificationError unless HBase reads the HFile's first and last row at the two ends of its region."""
    (start, stop), (first, last) = plan.range(part), facts.bounds
    ends = [((start, first + b"\0"), [first]), ((last, stop), [last])] if facts.rows else [((start, stop), [])]
    with Connection(plan.server) as connection:
        for bounds, expected in ends:
            keys = list(islice(chain.from_iterable(connection.keys(plan.table, *bounds, [FAMILY], 2)), 2))
            if keys != expected:
                raise VerificationError(
                    f"{hfile_name(part)}: HBase has its file, but reads the rows {keys} where it has {expected}"
                )
