"""Activate a release: prove that it is complete, apply the gates, and make it the served release."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from predictions.errors import InputError, PredictionsError, RefusedError
from predictions.formats.manifest import Manifest, Predicted, mismatches
from predictions.formats.names import release_table
from predictions.hbase.connection import Connection
from predictions.hbase.releases import LOADED, REFUSED, Pointer, Releases
from predictions.settings import GateSettings, Settings
from predictions.sources import open_database
from predictions.stages.compare import compare_releases, keep, kept, to_json
from predictions.stages.warm import warm
from predictions.storage import Storage
from predictions.workers import cores

# The metric on the holdout by which a model must beat the baseline without features; less is better.
LOSSES = {"classification": "log_loss", "regression": "rmse"}


class Gate(NamedTuple):
    """A gate's verdict on a release.

    Args:
        name: the setting in `[gates]` that is its limit.
        passed: whether the release keeps to the limit.
        text: what was measured, and the limit.
    """

    name: str
    passed: bool
    text: str


def activate(
    settings: Settings,
    storage: Storage,
    release: str,
    force: str | None,
    report: Callable[[str], None],
    progress: Callable[[float], None],
) -> Pointer:
    """Make a loaded release the served release, in one write, if it is complete and passes the gates.

    Args:
        settings: where HBase is, and the limits of the gates.
        storage: where the releases' prediction lines are.
        release: its ID.
        force: why to activate it despite a failed gate or an earlier rollback; kept with the release.
        report: called with a line of text for each gate.
        progress: called with the share of the comparison that is done, 0 to 1.

    Raises:
        InputError: the release is not loaded.
        RefusedError: records are not accounted for, a gate failed, the release was rolled back, or another
            release was activated in the meantime.
    """
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        releases.require(release, LOADED, REFUSED)
        manifest = releases.manifest(release)
        if differences := list(mismatches(manifest.accounts)):
            raise RefusedError(f"release {release} is not complete: {'; '.join(differences)}; start a new release")
        pointer = releases.pointer()
        if pointer.current == release:
            return pointer
        report(_since_export(settings, manifest.export.rows))
        comparison = None
        try:
            comparison = _compare(storage, pointer.current, release, report, progress)
        except InputError as error:
            if force is None:
                raise
            report(f"not compared with the served release: {error}")
        verdicts = gates(settings.gates, manifest, comparison)
        for gate in verdicts:
            report(f"gate {gate.name}: {'passed' if gate.passed else 'FAILED'}: {gate.text}")
        failed = [gate for gate in verdicts if not gate.passed]
        is_refused = bool(failed) and force is None
        judgement = {
            "compared_with": pointer.current,
            "gates": [gate._asdict() for gate in verdicts],
            "forced": force,
            **_distributions(comparison),
        }
        releases.judge(release, REFUSED if is_refused else LOADED, judgement)
        if is_refused:
            names = ", ".join(dict.fromkeys(f"gates.{gate.name}" for gate in failed))
            raise RefusedError(f"release {release} is refused by {names}; pass --force REASON to activate it anyway")
        if pointer.current and manifest.scored:  # without a served release, no lookups wait
            warm(connection, release_table(settings.name, release), manifest.scored.rows)
        return releases.activate(release, force is not None, pointer.serial)


def _distributions(comparison: dict[str, Any] | None) -> dict[str, Any]:
    """Return the distribution of a release's predictions or, with several labels, that of each."""
    if not comparison or "labels" not in comparison:
        return {"distribution": comparison and comparison["after"]}
    return {"distributions": {label: of_label["after"] for label, of_label in comparison["labels"].items()}}


def _since_export(settings: Settings, exported: int) -> str:
    """Return a line about how the number of records has changed since the export; for information only."""
    try:
        now = open_database(settings.database).count()
    except PredictionsError as error:
        return f"{exported:,} records were exported; the records now in the database cannot be counted: {error}"
    return f"{exported:,} records were exported, the database has {now:,} now ({now - exported:+,})"


def _compare(
    storage: Storage,
    served: str | None,
    release: str,
    report: Callable[[str], None],
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """Return the comparison with the served release; make it unless the scoring job has made it."""
    folder, before = storage.release(release), storage.scored(served)
    if served and not before:
        report(f"release {release} is not compared: the prediction lines of the served release {served} are gone")
    comparison, before_id = kept(folder), before.release if before else None
    if comparison and comparison["releases"]["before"] == before_id:
        return comparison
    data = to_json(compare_releases(before, folder, cores(), progress), before_id, release)
    keep(data, folder)
    return json.loads(data)


def gates(limits: GateSettings, manifest: Manifest, comparison: dict[str, Any] | None) -> list[Gate]:
    """Return the verdict of every gate on a release; those that need a comparison are left out if there is none.

    Args:
        limits: the settings.
        manifest: of the release, which has a model and is scored.
        comparison: with the served release, or of the release alone (`predictions.stages.compare`), or None.
    """
    assert manifest.scored
    rows, failed, before = manifest.scored.rows, manifest.scored.failed, comparison and comparison["releases"]["before"]
    if not manifest.models:
        [predicted] = manifest.predicted
        return _label_gates(limits, predicted, failed, rows, comparison if before else None)
    verdicts = []
    for predicted in manifest.predicted:
        of_label = comparison["labels"][predicted.name] if comparison else None
        label_failed = of_label["after"]["failed"] if of_label else failed
        is_compared = of_label and before and of_label["before"]["rows"]  # that release may lack the label
        of_both = of_label if is_compared else None
        verdicts += [
            gate._replace(text=f"{predicted.name}: {gate.text}")
            for gate in _label_gates(limits, predicted, label_failed, rows, of_both)
        ]
    return verdicts


def _label_gates(
    limits: GateSettings, predicted: Predicted, failed: int, rows: int, comparison: dict[str, Any] | None
) -> list[Gate]:
    """Return the verdicts on one label; `comparison` is None if the release before it has nothing to compare with."""
    verdicts = [_skill(limits.min_skill, predicted), _failed(limits.max_failed, failed, rows)]
    return verdicts + _changes(limits, comparison) if comparison else verdicts


def _skill(limit: float, predicted: Predicted) -> Gate:
    training, metric = predicted.model.training, LOSSES[predicted.task]
    loss, baseline = training.metrics[metric], training.baseline[metric]
    skill = 1 - loss / baseline if baseline else 0.0
    where = "records possibly seen in training" if training.possibly_seen else "the holdout"
    text = f"{metric.replace('_', ' ')} on {where} {loss:.4g}, baseline without features {baseline:.4g}"
    return Gate("min_skill", skill >= limit, f"{text}: better by {skill:.2%}, at least {limit:.2%}")


def _failed(limit: float, failed: int, rows: int) -> Gate:
    share = failed / max(1, rows)
    text = f"{failed:,} of {rows:,} records could not be scored: {share:.2%}, at most {limit:.2%}"
    return Gate("max_failed", share <= limit, text)


def _changes(limits: GateSettings, comparison: dict[str, Any]) -> list[Gate]:
    before, both, changed = comparison["before"], comparison["both"], comparison["changed"]
    gone, stability = comparison["gone"], comparison["stability"]
    gone_share = gone / max(1, before["rows"])
    verdicts = [
        Gate(
            "max_gone",
            gone_share <= limits.max_gone,
            f"{gone:,} of {before['rows']:,} records are gone: {gone_share:.2%}, at most {limits.max_gone:.2%}",
        ),
        Gate(
            "max_psi",
            stability <= limits.max_psi,
            f"population stability index {stability:.3f}, at most {limits.max_psi:g}",
        ),
    ]
    if before["classes"]:  # the numbers of a regressor all change a little with every model
        share = changed / max(1, both)
        text = f"{changed:,} of {both:,} predictions changed their class: {share:.2%}"
        verdicts.append(Gate("max_changed", share <= limits.max_changed, f"{text}, at most {limits.max_changed:.2%}"))
    return verdicts
