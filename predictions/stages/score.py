"""Score a release's records by one of three runners, and prove that no record was lost."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Protocol

from predictions.errors import InputError, InternalError, RefusedError
from predictions.formats import unreadable
from predictions.formats.counters import Outcome
from predictions.formats.id_digest import IdDigest
from predictions.formats.manifest import (
    Account,
    Export,
    ModelFacts,
    ModelManifest,
    Scored,
    exported_and_scored,
    mismatches,
)
from predictions.formats.prediction_line import END_OF_SCORED, conflicting_keys, parse_line
from predictions.formats.record_line import split_lines, unescape
from predictions.formats.row_key import record_id, split_points
from predictions.settings import Settings
from predictions.storage import HFILES, ReleaseFolder

EXAMPLES = 5
COUNTERS = {
    *("read", "unreadable", "read_digest"),  # the mapper's
    *("scored", "failed", "duplicates", "conflicts", "written_digest", "duplicates_digest", "unreadable_written"),
    "carried",
}


class Runner(Protocol):
    """A way to run the two scripts over the exported records."""

    makes_output: bool  # whether it makes the output folder itself

    def run(self, output: str, progress: Callable[[float], None]) -> Outcome:
        """Write `output/part-*`, one for each region, and return the outcome."""

    def finish(self) -> None:
        """Keep the other results of the run, once the prediction lines are in their place."""

    def locate(self, line: unreadable.Unreadable) -> unreadable.Unreadable:
        """Return the line with its file and line number in the export, given those that its mapper knew."""


def make_runner(
    name: str | None, settings: Settings, folder: ReleaseFolder, served: ReleaseFolder | None, changed: bool
) -> Runner:
    """Return a runner; by default `hadoop` for a release on HDFS, `local` for one in a folder.

    Args:
        name: `pipe`, one process of each script; `local`, as many mappers and reducers as there are cores; `hadoop`.
        settings: where and how the job runs.
        folder: a release that was exported and has a model.
        served: the served release, with which the reducers of a job compare their lines.
        changed: whether records that have not changed since it was scored keep its lines.

    Raises:
        InputError: the runner cannot be used (see `ScoreJob` and `LocalRun`).
    """
    if (name or ("hadoop" if folder.storage.is_hdfs else "local")) == "hadoop":
        from predictions.stages.score_hadoop import ScoreJob

        return ScoreJob(settings, folder, served, changed)
    from predictions.stages.score_local import LocalRun

    return LocalRun(settings.hbase.regions, folder, name == "pipe", served if changed else None)


def score(
    settings: Settings,
    folder: ReleaseFolder,
    runner: str | None,
    progress: Callable[[float], None],
    served: ReleaseFolder | None = None,
    changed: bool = False,
) -> Scored:
    """Score every record of a release, unless it is scored already.

    Args:
        settings: where and how the job runs; the share of records that may fail.
        folder: a release that was exported and has a model.
        runner: see `make_runner`.
        progress: called with the share of the job that is done, 0 to 1.
        served: see `make_runner`.
        changed: score only records that have changed since the served release, which must have the same model.

    Returns:
        What was scored, as in the release's manifest.

    Raises:
        InputError: the model is for other columns than were exported, or one ID stands for different records.
        RefusedError: some lines are unreadable, more records failed than the settings allow, or another run has scored
            the release in the meantime.
        InternalError: the job failed or lost records.
    """
    if folder.has("scored"):
        return folder.scored
    started = time.monotonic()
    model, exported = check_model(folder), folder.manifest.export
    run = make_runner(runner, settings, folder, served, changed)
    folder.remove(unreadable.FILE)
    with folder.writing("scored", make=not run.makes_output) as output:
        counts, job = run.run(output, progress)
        _check_counts(counts, exported)
        _require_fit(counts, settings.gates.max_failed, folder, output, run)
        scored = Scored(
            **{name: counts[name] for name in ("read", "scored", "failed", "duplicates", "unreadable", "carried")},
            rows=counts["scored"] + counts["failed"],
            id_digest=IdDigest(counts["written_digest"]),
            duplicates_digest=IdDigest(counts["duplicates_digest"]),
            split_points=[point.decode() for point in split_points(settings.hbase.regions)],
            carried_from=served.release if served and changed else None,
            job=job,
            seconds=round(time.monotonic() - started, 3),
        )
        accounts = [
            Account("exported", exported.rows, exported.id_digest),
            Account("read by the job", scored.read, IdDigest(counts["read_digest"])),
            *exported_and_scored(exported, scored),
        ]
        if differences := list(mismatches(accounts)):
            raise InternalError(f"the job did not score the records that were exported: {'; '.join(differences)}")
        if folder.has("scored"):
            raise RefusedError(
                f"{folder.path}: another run has scored this release in the meantime; its result is kept"
            )
        folder.take(output, HFILES)
        facts = ModelFacts(model.estimator, model.sha256, model.versions, model.training, model.engine, model.source)
        folder.write_manifest(replace(folder.manifest, model=facts, task=model.task, scored=scored))
    run.finish()
    return scored


def check_model(folder: ReleaseFolder) -> ModelManifest:
    """Return the manifest of a release's model; raise InputError if it is missing or for other columns."""
    folder.require("export", "export")
    return _fitting(folder, folder, "start a new release")


def take_model(folder: ReleaseFolder, earlier: ReleaseFolder) -> ModelManifest:
    """Copy the model of an earlier release instead of training one, and return its manifest.

    Raises:
        InputError: the earlier release has no model, or one for other columns.
    """
    model = _fitting(earlier, folder, "train another model (without --model and --changed)")
    with folder.writing("model") as target:
        for name in model.files:
            with folder.create(f"{target}/{name}") as file:
                file.write(earlier.read(f"model/{name}"))
    return model


def _fitting(source: ReleaseFolder, folder: ReleaseFolder, cure: str) -> ModelManifest:
    """Return the model of `source`; raise InputError unless it takes the columns that `folder` has exported."""
    model, exported = source.model, folder.manifest
    if (model.features, model.label) != (exported.features, exported.label):
        raise InputError(
            f"the model of release {source.release} takes {model.names}, but {exported.names} were exported: {cure}"
        )
    return model


def _check_counts(counts: dict[str, int], exported: Export) -> None:
    """Raise InternalError unless the job's counters account for every exported line."""
    if not counts.keys() >= COUNTERS:
        raise InternalError(f"the job's report lacks the scripts' counters; it has {counts or 'none'}")
    if counts["read"] != exported.rows:
        raise InternalError(f"{exported.rows:,} records were exported, but the job read {counts['read']:,}")
    parts = [counts[name] for name in ("scored", "failed", "duplicates", "unreadable")]
    if counts["read"] != sum(parts) or counts["unreadable"] != counts["unreadable_written"]:
        raise InternalError(f"the job lost records: its counters do not add up: {counts}")


def _require_fit(counts: dict[str, int], max_failed: float, folder: ReleaseFolder, output: str, run: Runner) -> None:
    """Raise if the output, though complete, must not be loaded."""
    output_name = output.rpartition("/")[2]
    if counts["unreadable"]:
        path = _keep_unreadable(folder, output_name, run)
        raise RefusedError(
            f"{counts['unreadable']:,} of {counts['read']:,} lines could not be read; they are in {path}, each "
            "with its split, line number and reason: correct the records and export again"
        )
    if counts["conflicts"]:
        examples = ", ".join(islice(_conflicts(folder, output_name), EXAMPLES))
        raise InputError(
            f"the ID is not unique: {counts['conflicts']:,} IDs stand for different records, for example {examples}; "
            "give each record an ID of its own"
        )
    rows = counts["scored"] + counts["failed"]
    if counts["failed"] > max_failed * rows:
        reasons = ", ".join(
            f"{reason} ({count:,})" for reason, count in _failures(folder, output_name).most_common(EXAMPLES)
        )
        raise RefusedError(
            f"{counts['failed']:,} of {rows:,} records could not be scored, more than gates.max_failed "
            f"({max_failed:.2%}) allows: {reasons}"
        )


def _keep_unreadable(folder: ReleaseFolder, output_name: str, run: Runner) -> str:
    with folder.writing(unreadable.FILE, make=False) as temporary, folder.create(temporary) as file:
        file.write(unreadable.HEAD)
        for block in _blocks(folder, output_name):
            file.write(unreadable.file_lines(map(run.locate, unreadable.find(block))))
    return f"{folder.path}/{unreadable.FILE}"


def _conflicts(folder: ReleaseFolder, output_name: str) -> Iterator[str]:
    for block in _blocks(folder, output_name):
        for key in conflicting_keys(block):
            yield unescape(record_id(key)).decode()


def _failures(folder: ReleaseFolder, output_name: str) -> Counter[str]:
    """Count the failed records by reason."""
    return Counter(
        unescape(parse_line(line).error).decode(errors="replace")
        for block in _blocks(folder, output_name)
        for line in split_lines(block)
        if not line.endswith(END_OF_SCORED[:-1])
    )


def _blocks(folder: ReleaseFolder, output_name: str) -> Iterator[bytes]:
    for path in folder.files(output_name):
        yield from folder.blocks(path)
