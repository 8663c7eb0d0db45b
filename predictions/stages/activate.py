"""Activate: the proof that a release is whole, the gates that it must pass, and the switch."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from predictions.errors import InputError, PredictionsError, RefusedError
from predictions.formats.manifest import Manifest, Scored, mismatches
from predictions.hbase.connection import Connection
from predictions.hbase.releases import LOADED, REFUSED, Pointer, Releases
from predictions.settings import GateSettings, Settings
from predictions.sources import open_database
from predictions.stages.compare import compare_releases, keep, kept, to_json
from predictions.storage import Storage
from predictions.workers import cores

# What a model is measured by on the holdout, against the baseline that knows no feature; less is better.
LOSSES = {"classification": "log_loss", "regression": "rmse"}


class Gate(NamedTuple):
    """One gate.

    Args:
        name: the setting in `[gates]` that is its limit.
        passed: whether the release satisfies it.
        text: what was found, and the limit.
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
    """Make a loaded release the current one, in one write, if it is fit to be served.

    Args:
        settings: where HBase is, and the limits.
        storage: where the releases' prediction lines are.
        release: its ID.
        force: why it is to become the current one though a gate refuses it, or though it was rolled back from; kept.
        report: called with a line of text for each gate.
        progress: called with the share of the comparison that is done.

    Raises:
        InputError: the release is not loaded.
        RefusedError: records are not accounted for, a gate refuses it, it was rolled back from, or another activation
            came between.
    """
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        releases.require(release, LOADED, REFUSED)
        manifest = releases.manifest(release)
        if unproven := list(mismatches(manifest.accounts)):
            raise RefusedError(f"release {release} is not whole: {'; '.join(unproven)}; load a new one")
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
            report(f"not compared with the current release: {error}")
        found = gates(settings.gates, manifest, comparison)
        for gate in found:
            report(f"gate {gate.name}: {'passed' if gate.passed else 'REFUSED'}: {gate.text}")
        refusals = [gate for gate in found if not gate.passed]
        is_refused = bool(refusals) and force is None
        verdict = {
            "compared_with": pointer.current,
            "gates": [gate._asdict() for gate in found],
            "forced": force,
            "distribution": comparison and comparison["after"],
        }
        releases.judge(release, REFUSED if is_refused else LOADED, verdict)
        if is_refused:
            names = ", ".join(f"gates.{gate.name}" for gate in refusals)
            raise RefusedError(f"release {release} is refused by {names}; --force REASON makes it current all the same")
        return releases.activate(release, force is not None, pointer.serial)


def _since_export(settings: Settings, exported: int) -> str:
    """Return what to tell of the records that came or went since the export; it stops nobody."""
    try:
        now = open_database(settings.database).count()
    except PredictionsError as error:
        return f"{exported:,} records were exported; the database cannot be asked how many there are now: {error}"
    return f"{exported:,} records were exported, the database has {now:,} now ({now - exported:+,})"


def _compare(
    storage: Storage,
    current: str | None,
    release: str,
    report: Callable[[str], None],
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """Return the comparison with the current release, made now unless the scoring job has made it."""
    folder, before = storage.release(release), storage.scored(current)
    if current and not before:
        report(f"the prediction lines of the current release {current} are gone: nothing to compare {release} with")
    known, name = kept(folder), before.release if before else None
    if known and known["releases"]["before"] == name:
        return known
    found = to_json(compare_releases(before, folder, cores(), progress), name, release)
    keep(found, folder)
    return json.loads(found)


def gates(limits: GateSettings, manifest: Manifest, comparison: dict[str, Any] | None) -> list[Gate]:
    """Return every gate for a release.

    Args:
        limits: the settings.
        manifest: of the release, which was trained and scored.
        comparison: with the current release, or of the release alone (`predictions.stages.compare`); None where
            there is none.
    """
    assert manifest.scored
    found = [_skill(limits.min_skill, manifest), _failed(limits.max_failed, manifest.scored)]
    return found + _changes(limits, comparison) if comparison and comparison["releases"]["before"] else found


def _skill(limit: float, manifest: Manifest) -> Gate:
    assert manifest.model
    assert manifest.task
    training, name = manifest.model.training, LOSSES[manifest.task]
    loss, baseline = training.metrics[name], training.baseline[name]
    skill = 1 - loss / baseline if baseline else 0.0
    text = f"{name.replace('_', ' ')} on the holdout {loss:.4g}, of the baseline without features {baseline:.4g}"
    return Gate("min_skill", skill >= limit, f"{text}: better by {skill:.2%}, at least {limit:.2%}")


def _failed(limit: float, scored: Scored) -> Gate:
    share = scored.failed / max(1, scored.rows)
    text = f"{scored.failed:,} of {scored.rows:,} records could not be scored: {share:.2%}, at most {limit:.2%}"
    return Gate("max_failed", share <= limit, text)


def _changes(limits: GateSettings, found: dict[str, Any]) -> list[Gate]:
    before, both, changed = found["before"], found["both"], found["changed"]
    gone, stability = found["gone"] / max(1, before["rows"]), found["stability"]
    gates = [
        Gate(
            "max_gone",
            gone <= limits.max_gone,
            f"{found['gone']:,} of {before['rows']:,} records are gone: {gone:.2%}, at most {limits.max_gone:.2%}",
        ),
        Gate(
            "max_psi",
            stability <= limits.max_psi,
            f"population stability index {stability:.3f}, at most {limits.max_psi:g}",
        ),
    ]
    if before["classes"]:  # of numbers, all of them change a little with every model
        share = changed / max(1, both)
        text = f"{changed:,} of {both:,} predictions are another class: {share:.2%}"
        gates.append(Gate("max_changed", share <= limits.max_changed, f"{text}, at most {limits.max_changed:.2%}"))
    return gates
