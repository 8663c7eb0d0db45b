"""Hadoop Streaming jobs: the literal `hadoop jar` command, its progress, its counters, and why it failed."""

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
from predictions.jobs.yarn import UNREACHABLE, attempt_logs, complaints, kill_application, refused, usable_nodes
from predictions.settings import Settings
from predictions.storage import ReleaseFolder

# Where distributions keep the streaming jar, relative to the folder above the one that `hadoop` is in.
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
    """One streaming job.

    Args:
        name: shown by YARN.
        input: the folder of its input, in Hadoop's file system.
        output: the folder that it makes, if it has reduce tasks; else it makes none.
        mapper: the command of a map task.
        reducer: the command of a reduce task; None for a job of map tasks alone.
        reduces: how many reduce tasks.
        partitions: the file with the split points between them (`predictions.jobs.partitions`), in Hadoop's file
            system.
        files: shipped files, as local paths or Hadoop URLs; `#NAME` renames.
        archives: shipped archives, unpacked under `#NAME`.
        environment: variables of the tasks.
        properties: Hadoop's, for this job.
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
        """Return the command that submits the job; generic options stand first, as Hadoop demands."""
        properties = {
            # Fail in seconds, not in a quarter of an hour, where there is no YARN.
            "yarn.resourcemanager.connect.max-wait.ms": "20000",
            "yarn.resourcemanager.connect.retry-interval.ms": "2000",
            **self.properties,
            # Without it, Hadoop ends a line at a lone carriage return too.
            "textinputformat.record.delimiter": "\n",
            "mapreduce.job.name": self.name,
            "mapreduce.job.reduces": str(self.reduces),
        }
        if self.reducer and self.partitions:
            properties["mapreduce.totalorderpartitioner.path"] = self.partitions
            rest = ["-reducer", self.reducer]
            rest += ["-partitioner", "org.apache.hadoop.mapred.lib.TotalOrderPartitioner"]
        else:
            rest = ["-outputformat", "org.apache.hadoop.mapred.lib.NullOutputFormat"]
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
            *rest,
            *(word for name, value in self.environment.items() for word in ("-cmdenv", f"{name}={value}")),
        ]


def find_command(name: str, folder: Path | None) -> str | None:
    """Return the path of `hadoop` or `hbase`, from the settings' folder or else from the PATH; None if not there."""
    return shutil.which(name, path=str(folder)) if folder else shutil.which(name)


def require_hadoop(folder: Path | None) -> str:
    """Return the path of `hadoop`, as `find_command`; InputError if it is not there."""
    hadoop = find_command("hadoop", folder)
    if not hadoop:
        raise InputError(
            f"hadoop: no such command on {folder or 'the PATH'}; install a Hadoop client or set hadoop.bin"
        )
    return hadoop


def find_streaming_jar(hadoop: str, setting: Path | None) -> Path:
    """Return the streaming jar of an installation.

    Raises:
        InputError: it is not where distributions keep it, or not where the settings say.
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
    raise InputError(f"no hadoop-streaming jar below {homes[-1]}; name it with hadoop.streaming_jar")


class JobClient:
    """The Hadoop client of this machine, for the jobs over a release.

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

    def run(self, job: Job, progress: Callable[[float], None]) -> counters.Outcome:
        """Run a job to its end.

        Args:
            job: what to run.
            progress: called with the share that is done, 0 to 1: half of it the maps, half the reduces.

        Returns:
            The scripts' counters from Hadoop's report, and the job's ID.

        Raises:
            ServiceError: YARN cannot be reached, or HDFS takes nothing.
            InternalError: the job failed; the message has the cause from the attempts' logs.
        """
        said: list[str] = []
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
                    said.append(line)
                    if found := _PROGRESS.search(line):
                        reduced = int(found[2]) if job.reducer else int(found[1])
                        progress((int(found[1]) + reduced) / 200)
            except BaseException:
                process.terminate()
                if running := _SUBMITTED.search("".join(said)):
                    with suppress(ServiceError):
                        kill_application(self._hadoop, f"application_{running[1]}")  # on the cluster, it would go on
                raise
        report = "".join(said)
        if process.returncode:
            raise _failure(report, self._hadoop)
        found = _JOB.search(report)
        return counters.Outcome(counters.parse_report(report), f"job_{found[1]}" if found else None)

    def require_nodes(self) -> None:
        """Raise ServiceError unless a node can run a task: a job would wait for ever."""
        usable_nodes(self._hadoop)


def _failure(report: str, hadoop: str) -> PredictionsError:
    job = _JOB.search(report)
    if job:
        logs = attempt_logs(f"application_{job[1]}", hadoop)
        if found := diagnose(chain(report.splitlines(), logs)):
            return InternalError(f"job_{job[1]} failed: {found}")
        return InternalError(f"job_{job[1]} failed: no cause in its logs")
    if refused(report):
        return ServiceError(UNREACHABLE)
    if found := diagnose(report.splitlines()):
        return found.error(f"the job was not accepted: {found}")
    said = complaints(report) or report.splitlines() or ["no message"]
    return InternalError(f"the job was not accepted: {said[-1].strip()}")


def printable(command: Sequence[str]) -> str:
    """Return a command as one types it, an option a line."""
    words = [shlex.quote(word) for word in command]
    return " ".join(" \\\n    " + word if re.match(r"-[a-zA-Z]", word) else word for word in words).replace(
        "  \\", " \\"
    )
