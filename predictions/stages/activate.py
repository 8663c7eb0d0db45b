"""Activate a release: prove that it is complete, apply the gates, and make it the served release."""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from predictions.errors import InputError, PredictionsError, RefusedError, ServiceError
from predictions.formats.manifest import Manifest, Scored, mismatches
from predictions.formats.names import release_table
from predictions.formats.row_key import PREFIX_DIGITS
from predictions.hbase.connection import Connection
from predictions.hbase.releases import LOADED, REFUSED, Pointer, Releases
from predictions.settings import GateSettings, Settings
from predictions.sources import open_database
from predictions.stages.compare import compare_releases, keep, kept, to_json
from predictions.storage import Storage
from predictions.workers import cores

# The metric on the holdout by which a model must beat the baseline without features; less is better.
LOSSES = {"classification": "log_loss", "regression": "rmse"}

# The sample of a release that `warm` reads before the release is served.
WARM_ROWS = 200  # rows for each key: half a block of a model with two cells
WARM_KEYS = 16_384  # at most: more blocks would push those of the served release out of the cache
WARM_SECONDS = 30.0  # at most
WARM_REQUEST_KEYS = 64  # whose blocks the region server reads one after another, in some 0.1 s


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
            "distribution": comparison and comparison["after"],
        }
        releases.judge(release, REFUSED if is_refused else LOADED, judgement)
        if is_refused:
            names = ", ".join(f"gates.{gate.name}" for gate in failed)
            raise RefusedError(f"release {release} is refused by {names}; pass --force REASON to activate it anyway")
        assert manifest.scored
        try:
            keys = warm(connection, release_table(settings.name, release), manifest.scored.rows)
            report(f"looked {keys:,} keys up, so that HBase has the release in its cache")
        except ServiceError as error:
            report(f"the first lookups will be slower, since HBase's cache could not be filled: {error}")
        return releases.activate(release, force is not None, pointer.serial)


def warm(connection: Connection, table: str, rows: int) -> int:
    """Read a sample of a table, so that the first lookups find its blocks in HBase's cache; return the number of keys.

    The keys are spread evenly over the regions. They are bare prefixes, which no row has as its key: HBase reads the
    block in which each would be, and returns nothing. (A file that HBase wrote itself, after puts, has a Bloom filter,
    which answers instead; HFiles of this package have none.) After each request it waits as long as that took, so that
    lookups get half of the servers' time.

    Args:
        connection: to HBase.
        table: the release's table.
        rows: its number of rows.

    Raises:
        ServiceError: HBase does not answer.
    """
    count, prefixes = min(max(rows // WARM_ROWS, WARM_REQUEST_KEYS), WARM_KEYS), 16**PREFIX_DIGITS
    keys = [b"%0*x" % (PREFIX_DIGITS, number * prefixes // count) for number in range(count)]
    end = time.monotonic() + WARM_SECONDS
    for start in range(0, count, WARM_REQUEST_KEYS):
        began = time.monotonic()
        if began > end:
            return start
        connection.receive(connection.send_rows(table, keys[start : start + WARM_REQUEST_KEYS]))
        time.sleep(time.monotonic() - began)
    return count


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
    verdicts = [_skill(limits.min_skill, manifest), _failed(limits.max_failed, manifest.scored)]
    return verdicts + _changes(limits, comparison) if comparison and comparison["releases"]["before"] else verdicts


def _skill(limit: float, manifest: Manifest) -> Gate:
    assert manifest.model
    assert manifest.task
    training, metric = manifest.model.training, LOSSES[manifest.task]
    loss, baseline = training.metrics[metric], training.baseline[metric]
    skill = 1 - loss / baseline if baseline else 0.0
    text = f"{metric.replace('_', ' ')} on the holdout {loss:.4g}, baseline without features {baseline:.4g}"
    return Gate("min_skill", skill >= limit, f"{text}: better by {skill:.2%}, at least {limit:.2%}")


def _failed(limit: float, scored: Scored) -> Gate:
    share = scored.failed / max(1, scored.rows)
    text = f"{scored.failed:,} of {scored.rows:,} records could not be scored: {share:.2%}, at most {limit:.2%}"
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
