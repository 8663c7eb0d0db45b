"""The report: what a person looks at before a release is served, or after, as one HTML file with PNGs beside it."""

import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from predictions.errors import InputError
from predictions.formats.manifest import Manifest
from predictions.hbase.connection import Connection
from predictions.hbase.releases import NOT_LOADED, Known, Pointer, Releases, role
from predictions.report import figures
from predictions.settings import Settings
from predictions.stages.activate import LOSSES
from predictions.stages.compare import compare_releases, kept, to_json
from predictions.storage import ReleaseFolder, Storage
from predictions.workers import cores

TEMPLATE = "report.html"
COARSE = 2  # fine bins in one that is drawn
CLASSES = 20  # that are drawn, the most frequent ones
STAGES = ("export", "train", "score", "load")


class Picture(NamedTuple):
    """A figure of the report: its name, what it shows, and itself."""

    name: str
    caption: str
    figure: Figure


def write_report(
    settings: Settings, storage: Storage, release: str | None, target: Path, progress: Callable[[float], None]
) -> Path:
    """Write a release's report, and return its path.

    Args:
        settings: where HBase is.
        storage: where the release's files are.
        release: its ID; by default the newest.
        target: the folder that gets the HTML file and its figures as PNGs.
        progress: called with the share of the comparison that is done, where that has not been made before.

    Raises:
        InputError: the release is not scored, or nothing can be written there.
    """
    folder = storage.release(release)
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        known, pointer = releases.known(), releases.pointer()
    comparison = kept(folder) or _compare(storage, folder, pointer, progress)
    found = known.get(folder.release, Known(NOT_LOADED, None, None))
    page, pictures = render(settings.name, role(pointer, folder.release), found, folder.manifest, comparison)
    return _write(target, f"report-{folder.release}", page, pictures)


def render(
    name: str, role: str, known: Known, manifest: Manifest, comparison: dict[str, Any]
) -> tuple[str, list[Picture]]:
    """Return the HTML page of a report, and the pictures in it.

    Args:
        name: of the predictions.
        role: of the release (`predictions.hbase.releases.Listed`).
        known: what HBase knows of it.
        manifest: its own; it is scored.
        comparison: as `predictions.stages.compare` keeps it.
    """
    loader = PackageLoader("predictions.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = _number
    pictures = list(_pictures(manifest, comparison))
    page = environment.get_template(TEMPLATE).render(
        name=name,
        role=role,
        known=known,
        manifest=manifest,
        comparison=comparison,
        accounts=manifest.accounts if manifest.loaded else [],
        loss=LOSSES[manifest.task or ""],
        lineage=_lineage(manifest),
        pictures={picture.name: picture for picture in pictures},
        svg=lambda picture: figures.svg(picture.figure, picture.name),
    )
    return page, pictures


def _compare(
    storage: Storage, folder: ReleaseFolder, pointer: Pointer, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Return the comparison with the current release of one that the gates have not seen."""
    current = pointer.current if pointer.current != folder.release else pointer.previous
    before = storage.scored(current)
    found = compare_releases(before, folder, cores(), progress)
    return json.loads(to_json(found, before.release if before else None, folder.release))


def _pictures(manifest: Manifest, comparison: dict[str, Any]) -> Iterator[Picture]:
    assert manifest.model
    training, label = manifest.model.training, manifest.label.name
    probability = f"probability of {label}" if len(comparison["after"]["classes"]) <= 2 else "probability"
    score = f"predicted {label}" if manifest.task == "regression" else probability
    releases = comparison["releases"]
    shown = [side for side in ("before", "after") if releases[side]]
    names = [f"before: {releases[side]}" if side == "before" else releases[side] for side in shown]
    height, bounds, heights = _histogram([comparison[side] for side in shown])
    drawn = figures.distribution(score, height, bounds, list(zip(names, heights, strict=True)))
    yield Picture("distribution", f"How many records have which {score}.", drawn)
    if comparison["after"]["classes"]:
        sides = [comparison[side]["classes"] for side in shown]
        frequent = Counter(sides[0]) | Counter(sides[-1])
        labels = sorted(label for label, _count in frequent.most_common(CLASSES))
        shares = [[side.get(each, 0) / max(1, sum(side.values())) for each in labels] for side in sides]
        drawn = figures.classes(labels, list(zip(names, shares, strict=True)))
        yield Picture("classes", f"Which {label} is predicted.", drawn)
    if releases["before"]:
        drift = [(each["bin"], each["value"]) for each in comparison["drift"]]
        if len(drift) > CLASSES:
            drift = sorted(drift, key=lambda each: -each[1])[:CLASSES]
        caption = "What each bin adds to the population stability index."
        yield Picture("drift", caption, figures.drift(score, *zip(*drift, strict=True)))
        edges = comparison["amounts"]["edges"]
        bins = ["less", *(f"{edge:g}" for edge in edges)]
        of = "difference, as a share of the values' spread" if manifest.task == "regression" else "moved probability"
        caption = "How much the predictions of the same records changed."
        yield Picture("changes", caption, figures.amounts(f"{of}, at least", bins, comparison["amounts"]["counts"]))
    if training.calibration:
        points = [[each[side] for each in training.calibration] for side in ("predicted", "actual")]
        caption = "What was predicted for records that the model had not seen, and what was so."
        yield Picture("calibration", caption, figures.calibration(score, *points))
    seconds = [stage.seconds for stage in (manifest.export, training, manifest.scored, manifest.loaded) if stage]
    yield Picture("stages", "How long each stage took.", figures.durations(STAGES[: len(seconds)], seconds))


def _histogram(sides: list[dict[str, Any]]) -> tuple[str, list[float], list[list[float]]]:
    """Return what the heights of the bins are, the bounds of the bins, and each side's heights."""
    edges = sides[0]["histogram"]["edges"]
    counts = [side["histogram"]["counts"] for side in sides]
    totals = [max(1, sum(side)) for side in counts]
    if sides[0]["classes"]:
        pairs = [[sum(side[at : at + COARSE]) for at in range(0, len(side), COARSE)] for side in counts]
        heights = [[count / total for count in side] for side, total in zip(pairs, totals, strict=True)]
        return "share of the records", [0.0, *edges, 1.0][::COARSE], heights
    # A regressor's bins differ in width, and the outermost ones have no end.
    widths = [end - start for start, end in pairwise(edges)]
    heights = [
        [count / width / total for count, width in zip(side[1:-1], widths, strict=True)]
        for side, total in zip(counts, totals, strict=True)
    ]
    return "share of the records, for each unit", edges, heights


def _lineage(manifest: Manifest) -> dict[str, str]:
    model, export, scored = manifest.model, manifest.export, manifest.scored
    assert model
    assert scored
    return {
        "snapshot": manifest.snapshot.time,
        "source": ", ".join(f"{key} {value}" for key, value in manifest.source.items()),
        "features": ", ".join(column.name for column in manifest.features),
        "label": f"{manifest.label.name} ({export.labelled:,} records have one)",
        "IDs": f"{export.rows:,}, digest {export.id_digest}",
        "model": model.estimator,
        "model's SHA-256": model.sha256,
        "trained on": f"{model.training.fitted:,} records, seed {model.training.seed}",
        "versions": ", ".join(f"{name} {version}" for name, version in model.versions.items()),
        "job": scored.job or "none: scored without a cluster",
        "regions": f"{scored.parts}",
        "reported by": f"predictions {importlib.metadata.version('predictions')}",
    }


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _write(target: Path, name: str, page: str, pictures: list[Picture]) -> Path:
    try:
        target.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            (target / f"{name}-{picture.name}.png").write_bytes(figures.png(picture.figure))
        path = target / f"{name}.html"
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target}: {error.strerror}; choose another folder with --output") from error
    return path
