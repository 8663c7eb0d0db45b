"""Write the report of a release, to read before or after it is activated: one HTML file, and its figures as PNGs."""

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
from predictions.formats.manifest import Manifest, Predicted, Training
from predictions.hbase.connection import Connection
from predictions.hbase.releases import NOT_LOADED, Known, Pointer, Releases, role
from predictions.report import figures
from predictions.settings import Settings
from predictions.stages.activate import LOSSES
from predictions.stages.compare import compare_releases, kept, to_json
from predictions.storage import ReleaseFolder, Storage
from predictions.workers import cores

TEMPLATE = "report.html"
COARSE = 2  # fine bins in one drawn bin
CLASSES = 20  # classes that are drawn, the most frequent ones
STAGES = ("export", "train", "score", "load")


class Picture(NamedTuple):
    """A figure of the report, with its name and its caption."""

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
        release: the release's ID; None: the newest release.
        target: the folder for the HTML file and its figures as PNGs.
        progress: called with the share of the comparison that is done, 0 to 1, unless it was made before.

    Raises:
        InputError: the release is not scored, or the folder cannot be written to.
    """
    folder = storage.release(release)
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        by_release, pointer = releases.known(), releases.pointer()
    comparison = kept(folder) or _compare(storage, folder, pointer, progress)
    facts = by_release.get(folder.release, Known(NOT_LOADED, None, None))
    page, pictures = render(settings.name, role(pointer, folder.release), facts, folder.manifest, comparison)
    return _write(target, f"report-{folder.release}", page, pictures)


def render(
    name: str, role: str, facts: Known, manifest: Manifest, comparison: dict[str, Any]
) -> tuple[str, list[Picture]]:
    """Return the HTML page of a report, and the pictures in it.

    Args:
        name: the name of the predictions.
        role: the release's role (`predictions.hbase.releases.Listed`).
        facts: the release's state and gates, from HBase.
        manifest: the manifest of the release, which must be scored.
        comparison: the comparison, as `predictions.stages.compare` keeps it.
    """
    loader = PackageLoader("predictions.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = _number
    parts = list(_parts(manifest, comparison))
    pictures = [picture for part in parts for picture in part.pictures.values()] + [_stages(manifest)]
    page = environment.get_template(TEMPLATE).render(
        name=name,
        role=role,
        facts=facts,
        manifest=manifest,
        releases=comparison["releases"],
        parts=parts,
        accounts=manifest.accounts if manifest.loaded else [],
        lineage=_lineage(manifest),
        stages=pictures[-1],
        svg=lambda picture: figures.svg(picture.figure, picture.name),
    )
    return page, pictures


def _compare(
    storage: Storage, folder: ReleaseFolder, pointer: Pointer, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Compare a release with the served one, or the served one with the previous one."""
    earlier = pointer.current if pointer.current != folder.release else pointer.previous
    before = storage.scored(earlier)
    comparison = compare_releases(before, folder, cores(), progress)
    return json.loads(to_json(comparison, before.release if before else None, folder.release))


class Part(NamedTuple):
    """What the report says about a label.

    Args:
        title: the label, as it ends headings; empty if there is only one.
        loss: the metric that a gate compares.
        training: how its model was trained.
        comparison: of its predictions.
        earlier: the release that it is compared with; None if there is none, or if that release lacks the label.
        pictures: its pictures, by what they show.
    """

    title: str
    loss: str
    training: Training
    comparison: dict[str, Any]
    earlier: str | None
    pictures: dict[str, Picture]


def _parts(manifest: Manifest, comparison: dict[str, Any]) -> Iterator[Part]:
    """Yield a part for each label."""
    releases = comparison["releases"]
    for number, predicted in enumerate(manifest.predicted):
        of_label = comparison["labels"][predicted.name] if predicted.name else comparison
        is_compared = predicted.name is None or of_label["before"]["rows"]
        earlier = releases["before"] if is_compared else None
        pictures = {
            picture.name: picture._replace(name=f"{picture.name}-{number}" if predicted.name else picture.name)
            for picture in _pictures(predicted, of_label, {"before": earlier, "after": releases["after"]})
        }
        title = f" · {predicted.name}" if predicted.name else ""
        yield Part(title, LOSSES[predicted.task], predicted.model.training, of_label, earlier, pictures)


def _stages(manifest: Manifest) -> Picture:
    training = [predicted.model.training.seconds for predicted in manifest.predicted]
    others = [stage.seconds for stage in (manifest.scored, manifest.loaded) if stage]
    seconds = [manifest.export.seconds, sum(training), *others]
    return Picture("stages", "How long each stage took.", figures.durations(STAGES[: len(seconds)], seconds))


def _pictures(predicted: Predicted, comparison: dict[str, Any], releases: dict[str, str | None]) -> Iterator[Picture]:
    training, label = predicted.model.training, predicted.label.name
    probability = f"probability of {label}" if len(comparison["after"]["classes"]) <= 2 else "probability"
    score = f"predicted {label}" if predicted.task == "regression" else probability
    shown = [side for side in ("before", "after") if releases[side]]
    names = [f"before: {releases[side]}" if side == "before" else str(releases[side]) for side in shown]
    height, bounds, heights = _histogram([comparison[side] for side in shown])
    figure = figures.distribution(score, height, bounds, list(zip(names, heights, strict=True)))
    yield Picture("distribution", f"Distribution of the {score}.", figure)
    if comparison["after"]["classes"]:
        sides = [comparison[side]["classes"] for side in shown]
        frequent = Counter(sides[0]) | Counter(sides[-1])
        labels = sorted(value for value, _count in frequent.most_common(CLASSES))
        shares = [[side.get(value, 0) / max(1, sum(side.values())) for value in labels] for side in sides]
        figure = figures.classes(labels, list(zip(names, shares, strict=True)))
        yield Picture("classes", f"How often each value of {label} is predicted.", figure)
    if releases["before"]:
        drift = [(entry["bin"], entry["value"]) for entry in comparison["drift"]]
        if len(drift) > CLASSES:
            drift = sorted(drift, key=lambda entry: -entry[1])[:CLASSES]
        caption = "What each bin adds to the population stability index."
        yield Picture("drift", caption, figures.drift(score, *zip(*drift, strict=True)))
        edges = comparison["amounts"]["edges"]
        bins = ["less", *(f"{edge:g}" for edge in edges)]
        amount = (
            "difference in units of the values' spread" if predicted.task == "regression" else "probability changed by"
        )
        caption = "How much the predictions of the same records changed."
        yield Picture("changes", caption, figures.amounts(f"{amount}, at least", bins, comparison["amounts"]["counts"]))
    if training.calibration:
        points = [[tenth[side] for tenth in training.calibration] for side in ("predicted", "actual")]
        caption = "Predicted and actual values of the holdout, by tenths of the prediction."
        yield Picture("calibration", caption, figures.calibration(score, *points))


def _histogram(sides: list[dict[str, Any]]) -> tuple[str, list[float], list[list[float]]]:
    """Return the label of the bins' heights, the bounds of the bins, and each side's heights."""
    edges = sides[0]["histogram"]["edges"]
    counts = [side["histogram"]["counts"] for side in sides]
    totals = [max(1, sum(side)) for side in counts]
    if sides[0]["classes"]:
        coarse = [[sum(side[first : first + COARSE]) for first in range(0, len(side), COARSE)] for side in counts]
        heights = [[count / total for count in side] for side, total in zip(coarse, totals, strict=True)]
        return "share of the records", [0.0, *edges, 1.0][::COARSE], heights
    # A regressor's bins differ in width, and the outermost ones have no end.
    widths = [end - start for start, end in pairwise(edges)]
    heights = [
        [count / width / total for count, width in zip(side[1:-1], widths, strict=True)]
        for side, total in zip(counts, totals, strict=True)
    ]
    return "share of the records, per unit", edges, heights


def _lineage(manifest: Manifest) -> dict[str, str]:
    export, scored = manifest.export, manifest.scored
    assert scored
    lineage = {
        "snapshot": manifest.snapshot.time,
        "source": ", ".join(f"{key} {value}" for key, value in manifest.source.items()),
        "features": ", ".join(column.name for column in manifest.features),
        "IDs": f"{export.rows:,}, digest {export.id_digest}",
    }
    for number, predicted in enumerate(manifest.predicted):
        model, of = predicted.model, f" of {predicted.name}" if predicted.name else ""
        labelled = export.labelled_each[number] if export.labelled_each else export.labelled
        lineage |= {
            "label" if not of else f"label {number + 1}": f"{predicted.label.name} ({labelled:,} records have one)",
            f"model{of}": f"{model.estimator}, scored by {model.engine}",
            f"model's SHA-256{of}": model.sha256,
            **(
                {f"brought in{of}": f"{model.origin}, measured on {model.training.measured_on}"}
                if model.origin
                else {f"trained on{of}": f"{model.training.fitted:,} records, seed {model.training.seed}"}
            ),
        }
    return lineage | {
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.predicted[0].model.versions.items()),
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
