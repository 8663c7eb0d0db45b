"""Compare two scored releases by their prediction lines, range by range in processes of this machine."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from predictions.comparison.comparison import Compared, Comparisons, compare, lines_between
from predictions.comparison.distribution import Bins
from predictions.errors import InputError
from predictions.formats.document import to_cell
from predictions.formats.manifest import ModelManifest, ReleaseModels
from predictions.formats.prediction_line import Place, place_of
from predictions.formats.row_key import key_range, split_points
from predictions.storage import HFILES, ReleaseFolder
from predictions.task.current import HDFS, Current, comparison_name, read_state
from predictions.workers import Report, run_tasks

COMPARISON_FILE = "comparison.json"  # a release's, with the release that it was to replace


def compare_releases(
    before: ReleaseFolder | None, after: ReleaseFolder, processes: int, progress: Callable[[float], None]
) -> Comparisons:
    """Compare two releases' predictions, label by label.

    Args:
        before: folder of the earlier release; None to look at the later one's distribution alone.
        after: folder of the later release, which may have another number of regions.
        processes: how many ranges of row keys are compared at once.
        progress: called with the share that is done, 0 to 1.

    Raises:
        InputError: a release is not scored, or they do not predict the same classes or numbers.
    """
    for folder in filter(None, (before, after)):
        folder.require("scored", "score")
    labels = compared_labels(before, after)
    points = after.scored.split_points
    comparison = Comparisons(labels)
    ranges = [key_range(points, part) for part in range(len(points) + 1)]
    for number, event in enumerate(run_tasks(partial(_compare, before, after, labels), ranges, processes), 1):
        comparison.merge(event.value)
        progress(number / len(ranges))
    return comparison


def describe_served(before: ReleaseFolder | None, after: ReleaseFolder, regions: int) -> Current:
    """Return what the reducers of a scoring job need to know of the served release.

    If no release is served, or it cannot be compared, the reducers look at the distribution of their own lines alone.

    Args:
        before: the served release, scored and on HDFS.
        after: the release to score.
        regions: how many regions it will have.

    Raises:
        InputError: a part file of the served release is missing.
    """
    region_points, columns = [point.decode() for point in split_points(regions)], after.models.columns
    try:
        labels = compared_labels(before, after)
    except InputError:  # `activate` will report that they cannot be compared
        before, labels = None, compared_labels(None, after)
    if not before:
        return Current.of(None, labels, [], [], region_points, columns)
    points = before.scored.split_points
    parts = [HDFS + before.part("scored", part) for part in range(len(points) + 1)]
    return Current.of(before.release, labels, points, parts, region_points, columns)


def keep_reducers_comparison(folder: ReleaseFolder, served: Current) -> None:
    """Merge and keep the comparisons that the reducers of a release's job made, if they are whole.

    They are if every reducer made one, and together they read all rows of the served release.
    """
    before_rows = ReleaseFolder(folder.storage, served.release).scored.rows if served.release else 0
    names = [comparison_name(part) for part in range(len(served.regions) + 1)]
    if set(names) <= set(folder.storage.names(f"{folder.path}/{HFILES}")):
        comparison = Comparisons(served.compared)
        for name in names:
            comparison.merge(read_state(served.compared, folder.read(f"{HFILES}/{name}")))
        if comparison.before_rows == before_rows:
            keep(to_json(comparison, served.release, folder.release), folder)


def compared_labels(before: ReleaseFolder | None, after: ReleaseFolder) -> list[Compared]:
    """Return what is compared of two releases with models, of which the earlier one may be missing.

    Raises:
        InputError: they do not predict the same classes or numbers.
    """
    models, labels = after.models, []
    for name, model in zip(models.names, models.each, strict=True):
        bins, place = Bins.of_model(model), None
        if before and (counterpart := _counterpart(before.models, models, model)):
            place, earlier = counterpart
            bins_before = Bins.of_model(earlier)
            if not bins_before.are_like(bins):
                label = f" for {name}" if name else ""
                raise InputError(
                    f"releases {before.release} and {after.release} cannot be compared{label}: one has classes, the "
                    "other numbers"
                )
            bins = bins_before
        labels.append(Compared(bins, name, place, place_of(models.columns, name)))
    return labels


def _counterpart(
    before: ReleaseModels, after: ReleaseModels, model: ModelManifest
) -> tuple[Place, ModelManifest] | None:
    """Return where the earlier release has the predictions to compare a model's with, and by which model.

    If both releases have one label, these are compared, whatever their names; otherwise, the names have to be the same.
    """
    is_only = len(before.each) == len(after.each) == 1
    for name, earlier in zip(before.names, before.each, strict=True):
        if is_only or (earlier.label and model.label and earlier.label.name == model.label.name):
            return place_of(before.columns, name), earlier
    return None


def _compare(
    before: ReleaseFolder | None,
    after: ReleaseFolder,
    labels: Sequence[Compared],
    bounds: tuple[bytes, bytes],
    _report: Report,
) -> Comparisons:
    return compare(lines_of(before, *bounds) if before else (), lines_of(after, *bounds), labels)


def to_json(comparison: Comparisons, before: str | None, after: str) -> bytes:
    """Return a comparison of two releases, given by their IDs, as JSON."""
    return to_cell({"releases": {"before": before, "after": after}, **comparison.as_json()})


def keep(comparison: bytes, folder: ReleaseFolder) -> None:
    """Write a comparison, as JSON, into the later release's folder."""
    folder.put(COMPARISON_FILE, io.BytesIO(comparison))


def kept(folder: ReleaseFolder) -> dict[str, Any] | None:
    """Return the comparison that `keep` has written; None if there is none."""
    return json.loads(folder.read(COMPARISON_FILE)) if folder.has(COMPARISON_FILE) else None


def lines_of(folder: ReleaseFolder, start: bytes, stop: bytes) -> Iterator[bytes]:
    """Yield the prediction lines of a release in a range of row keys, as `lines_between` does."""
    points = folder.scored.split_points
    return lines_between(points, lambda part: folder.blocks(folder.part("scored", part)), start, stop)
