"""Score a release by a Hadoop Streaming job (the runner `hadoop`)."""

from collections.abc import Callable

from predictions.formats.counters import Outcome
from predictions.formats.document import to_file
from predictions.formats.manifest import MODEL_MANIFEST
from predictions.formats.row_key import split_points
from predictions.formats.unreadable import Unreadable
from predictions.jobs.bundle import bundle, script
from predictions.jobs.partitions import partition_file
from predictions.jobs.streaming import Job, JobClient
from predictions.settings import Settings
from predictions.stages.compare import describe_served, keep_reducers_comparison
from predictions.storage import HFILES, ReleaseFolder
from predictions.task import environment as task
from predictions.task.current import CURRENT_FILE

SCRIPTS = ("mapper.py", "reducer.py")
BUNDLE = "bundle.zip"
PARTITIONS = "partitions"

_PROPERTIES = {
    # Prediction lines are kept as long as their release.
    "mapreduce.output.fileoutputformat.compress": "true",
    "mapreduce.output.fileoutputformat.compress.codec": "org.apache.hadoop.io.compress.GzipCodec",
    "zlib.compress.level": "BEST_SPEED",
}


class ScoreJob:
    """The scoring job of a release; the files that it ships stay in the release's folder `job`.

    Args:
        settings: the commands, the interpreter, the number of regions.
        folder: a release that was exported and has a model.
        served: the served release, with which the reducers compare their lines; None if no release is served.
        changed: whether records that have not changed since it was scored keep its lines.

    Raises:
        InputError: the command `hadoop` is missing, the storage is not HDFS, or a part file of the served release is
            missing.
    """

    makes_output = True

    def __init__(self, settings: Settings, folder: ReleaseFolder, served: ReleaseFolder | None, changed: bool) -> None:
        self._changed = changed and served is not None
        self._settings = settings
        self._folder = folder
        self._served = describe_served(served, folder, settings.hbase.regions)
        self._client = JobClient(settings, folder)

    def ship(self) -> None:
        """Put the files that the job ships next to the model: scripts, bundle, split points and `current.json`."""
        shipped = {
            **{name: script(name).read_bytes() for name in SCRIPTS},
            BUNDLE: bundle(),
            PARTITIONS: partition_file(split_points(self._settings.hbase.regions)),
            CURRENT_FILE: to_file(self._served),
        }
        # Files that are the same stay: a running job may be reading them.
        if not self._folder.has("job") or any(self._folder.read(f"job/{name}") != shipped[name] for name in shipped):
            self._folder.remove("job")
            with self._folder.writing("job") as target:
                self._client.put(target, shipped)

    def job(self, output: str) -> Job:
        """Return the job that writes into this folder of the release."""
        path, release = self._folder.path, self._folder.release
        python = self._settings.hadoop.python
        mapper, reducer = [MODEL_MANIFEST, release], [f"--hfiles={HFILES}", f"--current={CURRENT_FILE}"]
        if self._changed:
            mapper.append("--unscored")
            reducer += ["--score", MODEL_MANIFEST, release]
        archives, python_path = self._client.modules(f"{path}/job/{BUNDLE}")
        return Job(
            name=f"predictions {self._settings.name} {release}",
            input=f"{path}/export/part-*",
            output=output,
            mapper=" ".join([python, "mapper.py", *mapper]),
            reducer=" ".join([python, "reducer.py", *reducer]),
            reduces=self._settings.hbase.regions,
            partitions=f"{path}/job/{PARTITIONS}",
            files=[
                *(f"hdfs://{path}/job/{name}" for name in (*SCRIPTS, CURRENT_FILE)),
                *(f"hdfs://{path}/model/{name}" for name in self._folder.models.task_files),
            ],
            archives=archives,
            properties={**_PROPERTIES, **self._settings.hadoop.properties},
            environment={"PYTHONPATH": python_path, **task.ONE_THREAD},
        )

    def command(self) -> str:
        """Return the `hadoop jar` command as one would type it; `ship` makes the files that it names."""
        return self._client.command(self.job(f"{self._folder.path}/scored"))

    def run(self, output: str, progress: Callable[[float], None]) -> Outcome:
        """Run the job and return the outcome."""
        self._client.require_nodes()
        self.ship()
        return self._client.run(self.job(output), progress)

    def finish(self) -> None:
        """Keep the comparison with the served release that the reducers made."""
        keep_reducers_comparison(self._folder, self._served)

    def locate(self, line: Unreadable) -> Unreadable:
        """Return the line unchanged: the split of a task is already a part of an exported file."""
        return line
