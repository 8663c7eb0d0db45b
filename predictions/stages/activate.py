"""Activate: the proof that a release is whole, the gates, and the switch."""

import json
from collections.abc import Callable
from typing import Any

from predictions.errors import InputError, PredictionsError, RefusedError
from predictions.formats.proof import faults
from predictions.hbase.connection import Connection
from predictions.hbase.releases import LOADED, REFUSED, Pointer, Releases
from predictions.settings import Settings
from predictions.sources.base import open_database
from predictions.stages.compare import compare_releases, keep, kept, to_json
from predictions.stages.gates import gates
from predictions.storage import Storage
from predictions.workers import cores


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
        if unproven := list(faults(manifest)):
            raise RefusedError(f"release {release} is not whole: {'; '.join(unproven)}; load a new one")
        pointer = releases.pointer()
        if pointer.current == release:
            return pointer
        report(_since_export(settings, manifest["export"]["rows"]))
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
