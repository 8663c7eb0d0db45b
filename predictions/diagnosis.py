"""Find why a job failed: one cause and its cure, from the messages of Hadoop and the logs of the attempts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from predictions.errors import UPLOAD_FAILED, InternalError, PredictionsError, ServiceError

_MEMORY = (
    'give the tasks more memory: raise "mapreduce.map.memory.mb" and "mapreduce.reduce.memory.mb" in '
    "[hadoop.properties] (a map task needs about 300 MB as well as its JVM, more with a large model)"
)
_SPLIT = re.compile(r"Processing split: \S*/([^/\s]+:\d+\+\d+)")
_CONTAINER = re.compile(r"^Container: (container_\w+)")


@dataclass(frozen=True)
class Cause:
    """A possible cause, and the pattern of the log lines that show it.

    `text` and `cure` describe it; `text` may refer to the pattern's groups. The command fails with `error`.
    """

    pattern: re.Pattern[str]
    text: str
    cure: str
    error: type[PredictionsError] = InternalError


@dataclass(frozen=True)
class Diagnosis:
    """The cause of a failure, its cure, and the split of the task if it is known."""

    cause: str
    cure: str
    split: str | None
    error: type[PredictionsError]

    def __str__(self) -> str:
        where = f" (split {self.split})" if self.split and self.split.partition(":")[0] not in self.cause else ""
        return f"{self.cause}{where}" + (f"; {self.cure}" if self.cure else "")


# In order of precedence: a script's own message before its traceback, a cause before its consequence.
CAUSES = tuple(
    Cause(re.compile(pattern), *rest)
    for pattern, *rest in (
        (rf"^((?:mapper\.py|reducer\.py|loader): (?!{UPLOAD_FAILED}).+)", r"\1", ""),
        (
            r"^ModuleNotFoundError: No module named '([\w.]+)'",
            r"the tasks' Python has no module \1",
            "install the libraries on every node, or pack them with `predictions pack environment.tar.gz` and set "
            "hadoop.environment",
        ),
        (
            # Java 17 and 21 word it differently.
            r"Cannot run program \"([^\"]+)\".*(?:error=2,|error: 2 \()|: (\S+): command not found",
            r"a node has no program \1\2",
            "set hadoop.python to a Python that every node has",
        ),
        (r"(Cannot run program .+)", r"a node cannot start the tasks: \1", "check hadoop.python and the node itself"),
        (
            r"beyond the 'PHYSICAL' memory limit\. Current usage: (.+?) physical memory used",
            r"a task's container was killed for its memory: \1",
            _MEMORY,
        ),
        (
            r"beyond the 'VIRTUAL' memory limit\..* used; (.+?) virtual memory used",
            r"a task's container was killed for its virtual memory: \1",
            "have yarn.nodemanager.vmem-check-enabled turned off by an administrator, or " + _MEMORY,
        ),
        (
            r"^(?:\w+\.)*\w*MemoryError|(?<!Exception in thread \"main\" )java\.lang\.OutOfMemoryError",
            "a task ran out of memory",
            _MEMORY,
        ),
        (
            r"No space left on device",
            "a disk is full: no space left on device",
            "free space on the nodes, in yarn.nodemanager.local-dirs and their temporary folders",
        ),
        (
            r"((?:The (?:Disk|Name)Space quota)[^:\n]* is exceeded[^\n]*)",
            r"HDFS is full: \1",
            "remove old releases, or have the quota raised (hdfs dfsadmin -setSpaceQuota)",
            ServiceError,
        ),
        (
            r"could only be written to 0 of the \d+ minReplication nodes",
            "HDFS is full, or has no live data nodes: no data node could store a block",
            "see `hdfs dfsadmin -report`; free space or start data nodes",
            ServiceError,
        ),
        (
            r"SafeModeException|[Nn]ame node is in safe mode",
            "HDFS is in safe mode, so it accepts no writes",
            "safe mode ends once the data nodes have reported; see `hdfs dfsadmin -safemode get`, and use "
            "`-safemode leave` if an administrator turned it on",
            ServiceError,
        ),
        (
            r"^Fatal Python error: (.+)",
            r"a task's Python crashed: \1",
            "the stack is in the attempt's stderr; after two such attempts, the third one names the record",
        ),
        (
            # Neither "Exception from container-launch" nor the BrokenPipeError of a script that lost its reader.
            r"^(?!javax?\.|org\.|BrokenPipeError)((?:\w+\.)*\w+(?:Error|Exception|Interrupt|Exit)(?::.*|)$)",
            r"\1",
            "its traceback is in the attempt's stderr",
        ),
        (
            r"Timed out after (\d+) secs",
            r"a task gave no sign of life for \1 seconds",
            'if a block of records can take that long, raise "mapreduce.task.timeout" in [hadoop.properties]',
        ),
        (r"Job received Kill", "the job was killed by a user", ""),
        (
            r"subprocess failed with code (?:137|143)",
            "a task's script was killed by a signal",
            "the kernel may have run out of memory: see the node's system log",
        ),
        (rf"^(reducer\.py: {UPLOAD_FAILED}.+)", r"\1", "see the attempt's logs"),
        (
            r"(subprocess failed with code \d+)",
            r"a task's script failed without a message: \1",
            "see the attempt's logs",
        ),
        # A Java exception: the consequence of a script's failure, or a problem in Hadoop itself.
        (
            r"^(?:Error: |Exception in thread \"[^\"]*\" |(?=(?:javax?|org)\.[\w.$]+(?:Error|Exception)\b))(.+)",
            r"\1",
            "see the logs",
        ),
    )
)


def diagnose(lines: Iterable[str]) -> Diagnosis | None:
    """Return the cause of a failure, or None if no line shows one.

    Args:
        lines: the messages of Hadoop, or the output of `yarn logs`; read to the end, but not kept in memory.
    """
    matches: dict[int, tuple[re.Match[str], str | None]] = {}  # by index in CAUSES, with the container
    splits: dict[str, str] = {}
    container = None
    for line in lines:
        if match := _CONTAINER.match(line):
            container = match[1]
        elif container and (match := _SPLIT.search(line)):
            splits[container] = match[1]
        for rank, cause in enumerate(CAUSES):
            # Keep the last match: a third attempt names the record that killed the first two.
            if match := cause.pattern.search(line):
                killed = re.search(r"containerID=(container_\w+)", line)
                matches[rank] = match, killed[1] if killed else container
                break
    if not matches:
        return None
    rank = min(matches)
    match, container = matches[rank]
    cause = CAUSES[rank]
    return Diagnosis(match.expand(cause.text).strip(), cause.cure, splits.get(container or ""), cause.error)
