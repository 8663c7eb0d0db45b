"""What the jobs over a release share: the Hadoop client that hands them in, and how their modules get to the tasks."""

from collections.abc import Callable, Mapping

from predictions.errors import InputError
from predictions.formats.counters import Outcome
from predictions.jobs.streaming import Job, find_streaming_jar, printable, require_hadoop, run
from predictions.jobs.yarn import usable_nodes
from predictions.settings import Settings
from predictions.storage import ReleaseFolder


class JobClient:
    """The Hadoop client of this machine.

    Args:
        settings: name the commands and what the tasks are given.
        folder: the release's, on HDFS.

    Raises:
        InputError: `hadoop` is not there, or the storage is not HDFS.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder) -> None:
        self._hadoop = require_hadoop(settings.hadoop.bin)
        if not folder.storage.is_hdfs:
            raise InputError(f"hadoop.storage: {folder.storage.folder}: a job on the cluster reads from HDFS only")
        self._folder = folder
        self._environment = settings.hadoop.environment
        self._jar = find_streaming_jar(self._hadoop, settings.hadoop.streaming_jar)

    def put(self, target: str, files: Mapping[str, bytes]) -> None:
        """Write small files into a folder on HDFS."""
        for name, data in files.items():
            with self._folder.create(f"{target}/{name}") as file:
                file.write(data)

    def modules(self, bundle: str) -> tuple[list[str], str]:
        """Return the archives that a job ships and the PYTHONPATH with which its tasks find them.

        Tasks see links to the shipped files, and Python looks for imports beside a link's target: hence the path.

        Args:
            bundle: the path of our modules' archive on HDFS.
        """
        archives, path = [f"hdfs://{bundle}#lib"], "lib"
        if self._environment:
            archives.append(f"{self._environment.as_uri()}#environment")
            path += ":environment"
        return archives, path

    def command(self, job: Job) -> str:
        """Return the `hadoop jar` command, as one would type it."""
        return printable(job.command(self._hadoop, self._jar))

    def require_nodes(self) -> None:
        """Raise ServiceError unless a node can run a task: a job would wait for ever."""
        usable_nodes(self._hadoop)

    def run(self, job: Job, progress: Callable[[float], None]) -> Outcome:
        """Run a job, as `predictions.jobs.streaming.run`."""
        return run(job, self._hadoop, self._jar, progress)
