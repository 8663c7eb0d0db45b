"""Compare: any two scored releases, from their prediction lines, range by range in processes of this machine."""

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from predictions.comparison.comparison import Comparison, compare, lines_between
from predictions.comparison.distribution import Bins
from predictions.errors import InputError
from predictions.formats.document import to_cell
from predictions.formats.row_key import key_range, split_points
from predictions.storage import HFILES, ReleaseFolder
from predictions.task.current import HDFS, Current, comparison_name, read_state
from predictions.workers import Report, run_tasks

COMPARISON_FILE = "comparison.json"  # of a release, with the one that it was to replace


def compare_releases(
    before: ReleaseFolder | None, after: ReleaseFolder, processes: int, progress: Callable[[float], None]
) -> Comparison:
    """Compare two releases' predictions.

    Args:
        before: the earlier one's folder; None for the later one's distribution alone.
        after: the later one's; the numbers of their regions may differ.
        processes: how many ranges are compared at once.
        progress: called with the share that is done, 0 to 1.

    Raises:
        InputError: one is not scored, or they do not predict the same.
    """
    for folder in filter(None, (before, after)):
        folder.require("scored", "score")
    bins = bins_of(before or after)
    if before and not bins.are_like(bins_of(after)):
        raise InputError(f"{before.release} and {after.release}: one has classes, the other numbers; nothing compares")
    points = after.scored.split_points
    found = Comparison.of(bins)
    ranges = [key_range(points, part) for part in range(len(points) + 1)]
    for done, event in enumerate(run_tasks(partial(_compare, before, after, bins), ranges, processes), 1):
        found.merge(event.value)
        progress(done / len(ranges))
    return found


def served_beside(before: ReleaseFolder | None, after: ReleaseFolder, regions: int, carried: bool) -> Current:
    """Return what the reducers of a release's job need of the one that is served, or to look at their own lines alone.

    Args:
        before: the release that is served, which is scored, on HDFS.
        after: the release that is to be scored.
        regions: how many it will have.
        carried: whether records that have not changed since keep their lines.

    Raises:
        InputError: a part file is not there.
    """
    bins, ours = bins_of(before or after), [point.decode() for point in split_points(regions)]
    if not before or not bins.are_like(bins_of(after)):  # `activate` will say so
        return Current.of(None, bins_of(after), [], [], ours)
    points = before.scored.split_points
    parts = [HDFS + before.part("scored", part) for part in range(len(points) + 1)]
    return Current.of(before.release, bins, points, parts, ours, carried)


def gather(folder: ReleaseFolder, found: Current) -> None:
    """Keep what the reducers of a release's job found, if each of them could compare."""
    names = folder.storage.names(f"{folder.path}/{HFILES}")
    wanted = [comparison_name(part) for part in range(len(found.regions) + 1)]
    if set(wanted) <= set(names):
        comparison = Comparison.of(found.bins)
        for name in wanted:
            comparison.merge(read_state(found.bins, folder.read(f"{HFILES}/{name}")))
        keep(to_json(comparison, found.release, folder.release), folder)


def bins_of(folder: ReleaseFolder) -> Bins:
    """Return the bins of a release's model."""
    return Bins.of_model(folder.model)


def _compare(
    before: ReleaseFolder | None, after: ReleaseFolder, bins: Bins, bounds: tuple[bytes, bytes], _report: Report
) -> Comparison:
    return compare(lines_of(before, *bounds) if before else (), lines_of(after, *bounds), bins)


def to_json(found: Comparison, before: str | None, after: str) -> bytes:
    """Return a comparison of two releases, by their IDs, as JSON."""
    return to_cell({"releases": {"before": before, "after": after}, **found.as_json()})


def keep(comparison: bytes, folder: ReleaseFolder) -> None:
    """Put a comparison, as JSON, into the later release's folder."""
    folder.put(COMPARISON_FILE, io.BytesIO(comparison))


def kept(folder: ReleaseFolder) -> dict[str, Any] | None:
    """Return what `keep` has put there; None where it has not."""
    return json.loads(folder.read(COMPARISON_FILE)) if folder.has(COMPARISON_FILE) else None


def lines_of(folder: ReleaseFolder, start: bytes, stop: bytes) -> Iterator[bytes]:
    """Yield a release's prediction lines of a range of row keys, as `lines_between`."""
    points = folder.scored.split_points
    return lines_between(points, lambda part: folder.blocks(folder.part("scored", part)), start, stop)
