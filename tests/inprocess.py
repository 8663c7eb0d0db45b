"""Run the command line and the scripts in the test's own process, for tests that do not test processes.

Starting a process that imports scikit-learn takes two to three seconds of a core. `call` runs a command here; with
`processes`, the command starts the processes that it starts in production: the scripts, a fresh Python for a trained
model, the loader's workers.
"""

import faulthandler
import gc
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

import mapper
import reducer
from loader import bulk, puts
from predictions import workers
from predictions.cli import exits
from predictions.cli.main import cli
from predictions.formats.counters import Outcome
from predictions.formats.manifest import MODEL_MANIFEST
from predictions.formats.names import scored_at
from predictions.formats.record_line import read_blocks, split_lines
from predictions.formats.row_key import split_points
from predictions.jobs import streaming
from predictions.jobs.streaming import Job
from predictions.scoring.files import load_models
from predictions.scoring.predict import Scorer
from predictions.stages import compare, export, score, score_local, train, verify
from predictions.task.carry import carry_over


def call(arguments, folder, stdin=b"", processes=False, **environment):
    """Run `predictions` in a folder, and return its exit code and output."""
    before = os.getcwd(), signal.getsignal(signal.SIGTERM)
    os.chdir(folder)
    try:
        with CliRunner().isolation(stdin, environment) as (stdout, stderr, _both), without(processes):
            try:
                exits.run(cli, "predictions", list(arguments))
            except SystemExit as ended:
                code = ended.code
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
    finally:
        os.chdir(before[0])
        signal.signal(signal.SIGTERM, before[1])
    outputs = (stream.getvalue().decode() for stream in (stdout, stderr))
    return subprocess.CompletedProcess(arguments, code, *outputs)


@contextmanager
def without(processes=False):
    """Let the stages do the work of their subprocesses in this process, unless `processes` is set."""
    with pytest.MonkeyPatch.context() as patch:
        if not processes:
            patch.setattr(train, "try_in_fresh_process", lambda manifest, _release: load_models(manifest))
            patch.setattr(score_local, "LocalRun", OneProcess)
            for module in (compare, export, bulk, puts, verify):
                patch.setattr(module, "run_tasks", run_tasks)
        yield


def run_tasks(work, tasks, processes):
    """Replace `predictions.workers.run_tasks`: run one task after the other in this process."""
    for number, task in enumerate(tasks):
        reports = []
        try:
            result = work(task, reports.append)
        finally:
            gc.enable()  # a worker switches it off and leaves it off
        yield from (workers.Event(number, False, value) for value in reports)
        yield workers.Event(number, True, result)


OWN_FOLDER = Path(__file__).resolve().parent / "own_folder"
LOCAL = {
    "mapreduce.framework.name": "local",
    "mapreduce.local.map.tasks.maximum": "2",
    "mapreduce.local.reduce.tasks.maximum": "2",
}


@contextmanager
def without_yarn(storage):
    """Run jobs with all their tasks in the JVM of `hadoop jar`, for tests that do not test YARN.

    The JVM runs in the working directory and links the files that a job ships there, unless a file of that name exists:
    the directory must be empty. Hadoop's local runner does not find files that are shipped from HDFS, so each is copied
    to this machine.

    Args:
        storage: the storage that jobs ship files from; None for jobs on YARN.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:

        def local_url(url):
            path, hash_sign, name = url.removeprefix("hdfs://").partition("#")
            if path == url:
                return url
            copy = f"{folder}/{path.rpartition('/')[2]}"
            storage.fs.get_file(path, copy)
            return f"file://{copy}{hash_sign}{name}"

        def command(job, *arguments):
            local_job = replace(
                job,
                files=list(map(local_url, job.files)),
                archives=list(map(local_url, job.archives)),
                mapper=f"{OWN_FOLDER} {job.mapper}",
                reducer=job.reducer and f"{OWN_FOLDER} {job.reducer}",
                properties={**LOCAL, **job.properties},
            )
            return on_yarn(local_job, *arguments)

        on_yarn = Job.command
        if storage:
            patch.setattr(Job, "command", command)
            patch.setattr(streaming, "usable_nodes", lambda _hadoop: None)
        yield


def script(main, *arguments, stdin=b"", **environment):
    """Call the `main` of mapper.py or reducer.py with its own streams and environment; return exit code and output."""
    outputs = io.BytesIO(), io.BytesIO()
    stdout, stderr = (io.TextIOWrapper(stream, "utf-8", "backslashreplace", write_through=True) for stream in outputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faulthandler, "enable", lambda: None)  # it accepts only a stream with a file descriptor
        patch.setattr(gc, "freeze", lambda: None)
        for name, stream in (("stdin", io.TextIOWrapper(io.BytesIO(stdin))), ("stdout", stdout), ("stderr", stderr)):
            patch.setattr(sys, name, stream)
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            code = main(*map(str, arguments))
        except SystemExit as ended:  # raised by argparse on wrong arguments
            code = ended.code
    return subprocess.CompletedProcess(arguments, code, *(stream.getvalue() for stream in outputs))


class OneProcess:
    """Replace `LocalRun`, a runner of `score`: call the functions of mapper.py and reducer.py without processes."""

    makes_output = False

    def __init__(self, regions, folder, pipe, carry):
        self._points, self._folder, self._carry = split_points(regions), folder, carry

    def run(self, output, progress):
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            for name in self._folder.models.task_files:
                (scratch / name).write_bytes(self._folder.read(f"model/{name}"))
            model, scored = load_models(scratch / MODEL_MANIFEST), scored_at(self._folder.release)
            models = self._folder.models
            counts, examples, lines = Counter(dict.fromkeys(score.COUNTERS, 0)), [], []
            for path in self._folder.files("export"):
                file_counts = Counter()
                name = f"{path.rpartition('/')[2]}+0"
                split = mapper.Split(name, models.fields, scored, len(models.columns), len(models.each))
                scorer = Scorer(model, scored, f"split {split.name}")
                to_lines = partial(mapper.pass_on, split=split) if self._carry else scorer.lines
                blocks = mapper.map_records(self._folder.blocks(path), split, to_lines, file_counts)
                lines += split_lines(b"".join(blocks))
                counts.update(file_counts)
            lines.sort(key=lambda line: line.partition(b"\t")[0])
            ordered = read_blocks(io.BytesIO(b"".join(line + b"\n" for line in lines)))
            reduced = reducer.one_line_a_key(ordered, counts, examples)
            if self._carry:
                served = compare.lines_of(self._carry, b"", b"")
                reduced = carry_over(reduced, served, Scorer(model, scored, "region 0").score, scored, counts)
            reduced = b"".join(reducer.count_predictions(reduced, counts))
        score_local.cut(io.BytesIO(reduced), self._points, partial(self._part, output))
        progress(1.0)
        return Outcome(counts)

    def finish(self):
        pass

    def locate(self, line):
        return line

    def _part(self, output, region):
        return self._folder.create(f"{output}/part-{region:05d}")
