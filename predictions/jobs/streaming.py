"""Run Hadoop Streaming jobs: the `hadoop jar` command, its progress, its counters, and why a job failed."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from predictions.diagnosis import diagnose
from predictions.errors import InputError, InternalError, PredictionsError, ServiceError
from predictions.formats import counters
from predictions.jobs.yarn import CLIENT, UNREACHABLE, attempt_logs, complaints, kill_application, refused, usable_nodes
from predictions.settings import Settings
from predictions.storage import ReleaseFolder

# Where distributions keep the streaming jar, relative to the parent of the folder that `hadoop` is in.
_JAR_PATTERNS = (
    "share/hadoop/tools/lib/hadoop-streaming-*.jar",
    "lib/hadoop-mapreduce/hadoop-streaming*.jar",
    "../hadoop-mapreduce/hadoop-streaming*.jar",
    "../var/lib/hadoop-streaming-*.jar",
)
_PROGRESS = re.compile(r"map (\d+)% reduce (\d+)%")
_JOB = re.compile(r"Running job: job_(\d+_\d+)")
_SUBMITTED = re.compile(r"(?:Running job: job|Submitted application application)_(\d+_\d+)")


@dataclass(frozen=True)
class Job:
    """A streaming job.

    Args:
        name: the name that YARN shows.
        input: the input files, in Hadoop's file system.
        output: the folder that the reduce tasks write to; a job without reduce tasks does not make it.
        mapper: the command of a map task.
        reducer: the command of a reduce task; None: the job has map tasks only.
        reduces: the number of reduce tasks.
        partitions: the file with the split points between the reduce tasks (`predictions.jobs.partitions`), in
            Hadoop's file system.
        files: files to ship, as local paths or Hadoop URLs; `#NAME` renames a file.
        archives: archives to ship, each unpacked under its `#NAME`.
        environment: environment variables of the tasks.
        properties: Hadoop properties of the job.
    """

    name: str
    input: str
    output: str
    mapper: str
    files: Sequence[str]
    archives: Sequence[str]
    reducer: str | None = None
    reduces: int = 0
    partitions: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)

    def command(self, hadoop: str, jar: Path) -> list[str]:
        """Return the command that submits the job; generic options come first, as Hadoop requires."""
        properties = {
            # If YARN is not running, fail in seconds, not in a quarter of an hour.
            "yarn.resourcemanager.connect.max-wait.ms": "20000",
            "yarn.resourcemanager.connect.retry-interval.ms": "2000",
            # If the NameNode is away, tasks wait for minutes, as with two NameNodes; else ten seconds end the job.
            "dfs.client.retry.policy.enabled": "true",
            **self.properties,
            # Without this, Hadoop would also end a line at a lone carriage return.
            "textinputformat.record.delimiter": "\n",
            "mapreduce.job.name": self.name,
            "mapreduce.job.reduces": str(self.reduces),
        }
        if self.reducer and self.partitions:
            properties["mapreduce.totalorderpartitioner.path"] = self.partitions
            reduce_options = ["-reducer", self.reducer]
            reduce_options += ["-partitioner", "org.apache.hadoop.mapred.lib.TotalOrderPartitioner"]
        else:
            reduce_options = ["-outputformat", "org.apache.hadoop.mapred.lib.NullOutputFormat"]
        return [
            hadoop,
            "jar",
            str(jar),
            *(word for name, value in properties.items() for word in ("-D", f"{name}={value}")),
            *("-files", ",".join(self.files)),
            *("-archives", ",".join(self.archives)),
            *("-input", self.input),
            *("-output", self.output),
            *("-mapper", self.mapper),
            *reduce_options,
            *(word for name, value in self.environment.items() for word in ("-cmdenv", f"{name}={value}")),
        ]


def find_command(name: str, folder: Path | None) -> str | None:
    """Return the path of `hadoop` or `hbase`, in the settings' folder or else on the PATH; None if it is missing."""
    return shutil.which(name, path=str(folder)) if folder else shutil.which(name)


def require_hadoop(folder: Path | None) -> str:
    """Return the path of `hadoop`, like `find_command`; raise InputError if it is missing."""
    hadoop = find_command("hadoop", folder)
    if not hadoop:
        where = f"in {folder}" if folder else "on the PATH"
        raise InputError(f"hadoop: no such command {where}; install a Hadoop client or set hadoop.bin")
    return hadoop


def find_streaming_jar(hadoop: str, setting: Path | None) -> Path:
    """Return the streaming jar of an installation.

    Raises:
        InputError: it is not where the settings say or, if they do not say, not where distributions keep it.
    """
    if setting:
        if not setting.is_file():
            raise InputError(f"hadoop.streaming_jar: {setting}: no such file")
        return setting
    homes = [Path(hadoop).resolve().parent.parent, *map(Path, filter(None, [os.environ.get("HADOOP_HOME")]))]
    for home in homes:
        for pattern in _JAR_PATTERNS:
            for jar in sorted(home.glob(pattern)):
                return jar.resolve()
    raise InputError(f"no hadoop-streaming jar below {homes[-1]}; set hadoop.streaming_jar to its path")


class JobClient:
    """Run the jobs of a release with this machine's Hadoop client.

    Args:
        settings: where the commands are, and what the tasks are given.
        folder: the release's folder, on HDFS.

    Raises:
        InputError: the command `hadoop` is missing, or the storage is not HDFS.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder) -> None:
        self._hadoop = require_hadoop(settings.hadoop.bin)
        if not folder.storage.is_hdfs:
            raise InputError(
                f"hadoop.storage: {folder.storage.folder}: a job can read only from HDFS; set a webhdfs:// URL, or use "
                "--runner local"
            )
        self._folder = folder
        self._environment = settings.hadoop.environment
        self._jar = find_streaming_jar(self._hadoop, settings.hadoop.streaming_jar)

    def put(self, target: str, files: Mapping[str, bytes]) -> None:
        """Write small files into a folder on HDFS."""
        for name, data in files.items():
            with self._folder.create(f"{target}/{name}") as file:
                file.write(data)

    def modules(self, bundle: str) -> tuple[list[str], str]:
        """Return the archives that a job ships, and the PYTHONPATH with which its tasks find them.

        A task sees a link to each shipped file, and Python looks for imports next to the target of a script's link,
        so the tasks need this path.

        Args:
            bundle: the path of the archive with this project's modules, on HDFS.
        """
        archives, path = [f"hdfs://{bundle}#lib"], "lib"
        if self._environment:
            archives.append(f"{self._environment.as_uri()}#environment")
            path += ":environment"
        return archives, path

    def command(self, job: Job) -> str:
        """Return the `hadoop jar` command as one would type it."""
        return printable(job.command(self._hadoop, self._jar))

    def run(self, job: Job, progress: Callable[[float], None]) -> counters.Outcome:
        """Run a job to its end.

        Args:
            job: the job.
            progress: called with the share that is done, 0 to 1; the maps are one half, the reduces the other.

        Returns:
            The scripts' counters from Hadoop's report, and the job's ID.

        Raises:
            ServiceError: YARN does not answer, or HDFS cannot be written to.
            InternalError: the job failed; the message gives the cause from the attempts' logs.
        """
        output: list[str] = []
        command = job.command(self._hadoop, self._jar)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    output.append(line)
                    if percent := _PROGRESS.search(line):
                        reduced = int(percent[2]) if job.reducer else int(percent[1])
                        progress((int(percent[1]) + reduced) / 200)
            except BaseException:
                process.terminate()
                if submitted := _SUBMITTED.search("".join(output)):
                    with suppress(ServiceError):
                        kill_application(self._hadoop, f"application_{submitted[1]}")  # else the cluster goes on
                raise
        report = "".join(output)
        if process.returncode:
            raise _failure(report, self._hadoop)
        job_id = _JOB.search(report)
        return counters.Outcome(counters.parse_report(report), f"job_{job_id[1]}" if job_id else None)

    def require_nodes(self) -> None:
        """Raise ServiceError if no node can run a task: a job would wait for ever."""
        usable_nodes(self._hadoop)


def _failure(report: str, hadoop: str) -> PredictionsError:
    job = _JOB.search(report)
    if job:
        application = f"application_{job[1]}"
        if diagnosis := diagnose(chain(report.splitlines(), attempt_logs(application, hadoop))):
            return InternalError(f"job_{job[1]} failed: {diagnosis}")
        command = f"hadoop {CLIENT}.LogsCLI -applicationId {application}"
        return InternalError(f"job_{job[1]} failed: no cause in its logs; `{command}` prints them")
    if refused(report):
        return ServiceError(UNREACHABLE)
    if diagnosis := diagnose(report.splitlines()):
        return diagnosis.error(f"the job was not accepted: {diagnosis}")
    messages = complaints(report) or report.splitlines() or ["no message"]
    return InternalError(f"the job was not accepted: {messages[-1].strip()}")


def printable(command: Sequence[str]) -> str:
    """Return a command as one would type it, one option per line."""
    words = [shlex.quote(word) for word in command]
    return " ".join(" \\\n    " + word if re.match(r"-[a-zA-Z]", word) else word for word in words).replace(
        "  \\", " \\"
    )
