"""Score: the streaming job that makes a release's prediction lines."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hadoop.packing import bundle
from hadoop.partitions import partition_file
from hadoop.streaming import Job, find_command, find_streaming_jar, printable, run
from loader.regions import split_points
from predictions.errors import InputError, InternalError, RefusedError
from predictions.model import MANIFEST_FILE, MODEL_FILE
from predictions.settings import Settings
from predictions.storage import ReleaseFolder

CHECKOUT = Path(__file__).resolve().parent.parent
SCRIPTS = ("mapper.py", "reducer.py")
BUNDLE = "bundle.zip"
PARTITIONS = "partitions"
# A task has one core: scikit-learn's thread pools would only fight over it.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ScoreJob:
    """The job for one release. All that it ships lies in the release's folder `job` and stays there.

    Args:
        settings: names the commands, the interpreter, the regions.
        folder: a release that was exported and has a model.

    Raises:
        InputError: `hadoop` is not there, the storage is not HDFS, or the model is for other columns.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder) -> None:
        hadoop = find_command("hadoop", settings.hadoop.bin)
        if not hadoop:
            where = settings.hadoop.bin or "the PATH"
            raise InputError(f"hadoop: no such command on {where}; install a Hadoop client or set hadoop.bin")
        if not folder.storage.is_hdfs:
            raise InputError(f"hadoop.storage: {folder.storage.folder}: a job on the cluster reads from HDFS only")
        folder.require("export", "export")
        folder.require("model", "train")
        self._settings = settings
        self._folder = folder
        self._hadoop = hadoop
        self._jar = find_streaming_jar(hadoop, settings.hadoop.streaming_jar)
        self.model = self._check_model()

    def _check_model(self) -> dict[str, Any]:
        model, exported = json.loads(self._folder.read(f"model/{MANIFEST_FILE}")), self._folder.manifest()
        if model["features"] != exported["features"]:
            raise InputError(
                f"the model of {self._folder.path} takes {_names(model)}, but {_names(exported)} were exported: "
                "start a new release"
            )
        return model

    def ship(self) -> None:
        """Put what the job ships beside the model: the scripts, the bundle and the split points."""
        shipped = {
            **{script: (CHECKOUT / script).read_bytes() for script in SCRIPTS},
            BUNDLE: bundle(),
            PARTITIONS: partition_file(split_points(self._settings.hbase.regions)),
        }
        if self._folder.has("job"):
            if all(self._folder.read(f"job/{name}") == data for name, data in shipped.items()):
                return  # a job that is running may be reading them
            self._folder.remove("job")
        with self._folder.writing("job") as target:
            for name, data in shipped.items():
                with self._folder.create(f"{target}/{name}") as file:
                    file.write(data)

    def job(self, output: str) -> Job:
        """Return the job; its output goes to a folder of the release."""
        path, release = self._folder.path, self._folder.release
        python, environment = self._settings.hadoop.python, self._settings.hadoop.environment
        archives, python_path = [f"hdfs://{path}/job/{BUNDLE}#lib"], "lib"
        if environment:
            archives.append(f"{environment.as_uri()}#environment")
            python_path += ":environment"
        return Job(
            name=f"predictions {self._settings.name} {release}",
            input=f"{path}/export/part-*",
            output=output,
            mapper=f"{python} mapper.py {MANIFEST_FILE} {release}",
            reducer=f"{python} reducer.py",
            reduces=self._settings.hbase.regions,
            partitions=f"{path}/job/{PARTITIONS}",
            files=[
                *(f"hdfs://{path}/job/{script}" for script in SCRIPTS),
                *(f"hdfs://{path}/model/{name}" for name in (MODEL_FILE, MANIFEST_FILE)),
            ],
            archives=archives,
            # Tasks see links to the shipped files, and Python looks for imports beside a link's target: hence the path.
            environment={"PYTHONPATH": python_path, **ONE_THREAD},
        )

    def command(self) -> str:
        """Return the `hadoop jar` command, as one would type it; what it names is there after `ship`."""
        return printable(self.job(f"{self._folder.path}/scored").command(self._hadoop, self._jar))

    def run(self, output: str, progress: Callable[[float], None]) -> dict[str, int]:
        """Run the job and return the scripts' counters."""
        self.ship()
        return run(self.job(output), self._hadoop, self._jar, progress)


def score(settings: Settings, folder: ReleaseFolder, progress: Callable[[float], None]) -> dict[str, Any]:
    """Score every record of a release, unless that has been done.

    Args:
        settings: where and how the job runs; the share of records that may fail.
        folder: a release that was exported and has a model.
        progress: called with the share of the job that is done, 0 to 1.

    Returns:
        The part `scored` of the release's manifest.

    Raises:
        InputError: the model is for other columns than were exported, or the scripts refused their input.
        RefusedError: more records failed than the settings allow.
        InternalError: the job failed or lost records.
    """
    manifest = folder.manifest()
    if folder.has("scored"):
        return manifest["scored"]
    started = time.monotonic()
    job = ScoreJob(settings, folder)
    with folder.writing("scored", make=False) as output:
        counts = job.run(output, progress)
        _check_counts(counts, manifest["export"]["rows"], settings.gates.max_failed)
        folder.write_manifest(
            manifest
            | {
                "model": {key: job.model[key] for key in ("estimator", "sha256", "versions", "training")},
                "task": job.model["task"],
                "scored": counts
                | {
                    "split_points": [point.decode() for point in split_points(settings.hbase.regions)],
                    "seconds": round(time.monotonic() - started, 3),
                },
            }
        )
    return folder.manifest()["scored"]


def _names(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{column['name']} ({column['type']})" for column in manifest["features"])


def _check_counts(counts: dict[str, int], exported: int, max_failed: float) -> None:
    if not {"read", "scored", "failed", "predictions", "duplicates"} <= counts.keys():
        raise InternalError(f"Hadoop's report of the job lacks the scripts' counters; it has {counts or 'none'}")
    if not counts["read"] == counts["scored"] + counts["failed"] == counts["predictions"] + counts["duplicates"]:
        raise InternalError(f"the job lost records, by its own counters: {counts}")
    if counts["read"] != exported:
        raise InternalError(f"{exported:,} records were exported, but the job read {counts['read']:,}")
    if counts["failed"] > max_failed * exported:
        raise RefusedError(
            f"{counts['failed']:,} of {exported:,} records could not be scored, more than gates.max_failed "
            f"({max_failed:.2%}) allows"
        )
