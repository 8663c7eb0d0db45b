"""Activate: the proof that a release is whole, the gates, and the switch."""

from collections.abc import Callable

from loader.connection import Connection
from predictions.compare import compare_releases, keep
from predictions.database import open_database
from predictions.errors import InputError, PredictionsError, RefusedError
from predictions.gates import gates
from predictions.pointer import LOADED, REFUSED, Pointer, Releases
from predictions.proof import faults
from predictions.settings import Settings
from predictions.storage import ReleaseFolder, Storage
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
        before = _lines_of_current(storage, pointer.current, release, report)
        try:
            comparison = compare_releases(before, storage.release(release), cores(), progress)
            keep(comparison, before, storage.release(release))
        except InputError as error:
            if force is None:
                raise
            report(f"not compared with the current release: {error}")
        found = gates(settings.gates, manifest, comparison if before else None)
        for gate in found:
            report(f"gate {gate.name}: {'passed' if gate.passed else 'REFUSED'}: {gate.text}")
        refusals = [gate for gate in found if not gate.passed]
        is_refused = bool(refusals) and force is None
        verdict = {"compared_with": pointer.current, "gates": [gate._asdict() for gate in found], "forced": force}
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


def _lines_of_current(
    storage: Storage, current: str | None, release: str, report: Callable[[str], None]
) -> ReleaseFolder | None:
    """Return the current release's folder; None where there is none, or its prediction lines are gone."""
    if current is None:
        return None
    if current not in storage.releases() or not storage.release(current).has("scored"):
        report(f"the prediction lines of the current release {current} are gone: nothing to compare {release} with")
        return None
    return storage.release(current)
