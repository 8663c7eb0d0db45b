"""The loader as a Streaming job of map tasks alone: one a part, so that it grows with the cluster."""

from collections.abc import Callable

from loader.plan import Plan
from predictions.jobs.bundle import load_bundle
from predictions.jobs.client import JobClient
from predictions.jobs.streaming import Job
from predictions.settings import Settings
from predictions.storage import ReleaseFolder

BUNDLE = "loader.zip"
PLAN = "load.json"

_PROPERTIES = {
    # A part is one task's, whatever its size.
    "mapreduce.input.fileinputformat.split.minsize": str(1 << 62),
    # A second attempt would do no harm, but it would write the same rows again to a region that is slow already.
    "mapreduce.map.speculative": "false",
}


class LoadJob:
    """One load of a release by the cluster.

    Args:
        settings: where and how the job runs.
        folder: where the part files are, on HDFS.

    Raises:
        InputError: `hadoop` is not there, or the storage is not HDFS.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder) -> None:
        self._settings = settings
        self._folder = folder
        self._client = JobClient(settings, folder)

    def run(self, plan: Plan, tasks: int | None, progress: Callable[[float], None]) -> None:
        """Load all parts; one that is loaded already is only read.

        Args:
            plan: of the load; its rate is that of one task.
            tasks: how many at once; by default as many as the cluster can run.
            progress: called with the share that is done, 0 to 1.

        Raises:
            InternalError: the job failed.
            ServiceError: YARN cannot be reached.
        """
        self._client.require_nodes()
        # With a limit that is the number of tasks, Hadoop's ApplicationMaster gives the container for a second attempt
        # back while the other tasks run, and never asks again.
        limit = tasks if tasks and tasks < plan.parts else None
        with self._folder.scratch("load") as scratch:
            self._client.put(scratch, {BUNDLE: load_bundle(), PLAN: plan.to_json().encode()})
            self._client.run(self._job(scratch, limit), progress)

    def _job(self, scratch: str, limit: int | None) -> Job:
        hadoop = self._settings.hadoop
        archives, python_path = self._client.modules(f"{scratch}/{BUNDLE}")
        limits = {"mapreduce.job.running.map.limit": str(limit)} if limit else {}
        return Job(
            name=f"predictions load {self._settings.name} {self._folder.release}",
            input=f"{self._folder.path}/scored/part-*",
            output=f"{scratch}/output",
            mapper=f"{hadoop.python} -m loader {PLAN}",
            files=[f"hdfs://{scratch}/{PLAN}"],
            archives=archives,
            properties={**_PROPERTIES, **limits, **hadoop.properties},
            environment={"PYTHONPATH": python_path},
        )
