"""Why a job failed: from what Hadoop and the attempts' logs say to one cause, and what to do about it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from predictions.errors import UPLOAD_FAILED, InternalError, PredictionsError, ServiceError

_MEMORY = (
    'give the tasks more: "mapreduce.map.memory.mb" and "mapreduce.reduce.memory.mb" in [hadoop.properties] '
    "(a map task takes about 300 MB beside its JVM, more with a large model)"
)
_SPLIT = re.compile(r"Processing split: \S*/([^/\s]+:\d+\+\d+)")
_CONTAINER = re.compile(r"^Container: (container_\w+)")


@dataclass(frozen=True)
class Cause:
    """A cause by the words that give it away.

    `text` and `cure` are templates for the pattern's groups; `error` is the exception that it ends a command with.
    """

    pattern: re.Pattern[str]
    text: str
    cure: str
    error: type[PredictionsError] = InternalError


@dataclass(frozen=True)
class Diagnosis:
    """A cause as it was found: what, what to do, and the split of the task where it is known."""

    cause: str
    cure: str
    split: str | None
    error: type[PredictionsError]

    def __str__(self) -> str:
        where = f" (split {self.split})" if self.split and self.split.partition(":")[0] not in self.cause else ""
        return f"{self.cause}{where}" + (f"; {self.cure}" if self.cure else "")


# The first that is found anywhere is taken: a script's own message before its traceback, a reason before its outcome.
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
            # Java 17 and 21 say it each in their own way.
            r"Cannot run program \"([^\"]+)\".*(?:error=2,|error: 2 \()|: (\S+): command not found",
            r"a node has no program \1\2",
            "set hadoop.python to a Python that every node has",
        ),
        (r"(Cannot run program .+)", r"a node cannot start the tasks: \1", "see hadoop.python, and the node itself"),
        (
            r"beyond the 'PHYSICAL' memory limit\. Current usage: (.+?) physical memory used",
            r"a task's container was killed for its memory: \1",
            _MEMORY,
        ),
        (
            r"beyond the 'VIRTUAL' memory limit\..* used; (.+?) virtual memory used",
            r"a task's container was killed for its virtual memory: \1",
            "have yarn.nodemanager.vmem-check-enabled turned off, or " + _MEMORY,
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
            "HDFS is full, or has no live data nodes: a block could be written to none",
            "look at `hdfs dfsadmin -report`; free space or start data nodes",
            ServiceError,
        ),
        (
            r"SafeModeException|[Nn]ame node is in safe mode",
            "HDFS is in safe mode, in which nothing can be written",
            "it leaves it by itself once its data nodes have reported; see `hdfs dfsadmin -safemode get`, and "
            "`-safemode leave` if a person entered it",
            ServiceError,
        ),
        (
            r"^Fatal Python error: (.+)",
            r"a task's Python crashed: \1",
            "the stack is in the attempt's stderr; after two such attempts, the third one names the record",
        ),
        (
            # Not "Exception from container-launch", nor who lost its reader and died of that.
            r"^(?!javax?\.|org\.|BrokenPipeError)((?:\w+\.)*\w+(?:Error|Exception|Interrupt|Exit)(?::.*|)$)",
            r"\1",
            "its traceback is in the attempt's stderr",
        ),
        (
            r"Timed out after (\d+) secs",
            r"a task gave no sign of life for \1 seconds",
            'if a block of records may take so long, raise "mapreduce.task.timeout" in [hadoop.properties]',
        ),
        (r"Job received Kill", "the job was killed by somebody", ""),
        (
            r"subprocess failed with code (?:137|143)",
            "a task's script was killed by a signal",
            "the kernel may have been short of memory: see the node's system log",
        ),
        (rf"^(reducer\.py: {UPLOAD_FAILED}.+)", r"\1", "see the attempt's logs"),
        (r"(subprocess failed with code \d+)", r"a task's script ended without a word: \1", "see the attempt's logs"),
        # Java's own: the outcome of what a script said before, or a trouble of Hadoop's.
        (
            r"^(?:Error: |Exception in thread \"[^\"]*\" |(?=(?:javax?|org)\.[\w.$]+(?:Error|Exception)\b))(.+)",
            r"\1",
            "see the logs",
        ),
    )
)


def diagnose(lines: Iterable[str]) -> Diagnosis | None:
    """Return the cause that lines of a report or of logs give away, None where none is known.

    Args:
        lines: what Hadoop said, or `yarn logs` printed; read to the end, without keeping them.
    """
    found: dict[int, tuple[re.Match[str], str | None]] = {}
    splits: dict[str, str] = {}
    container = None
    for line in lines:
        if match := _CONTAINER.match(line):
            container = match[1]
        elif container and (match := _SPLIT.search(line)):
            splits[container] = match[1]
        for rank, cause in enumerate(CAUSES):
            # The latest says most: a third attempt knows the record that killed the first two.
            if match := cause.pattern.search(line):
                killed = re.search(r"containerID=(container_\w+)", line)
                found[rank] = match, killed[1] if killed else container
                break
    if not found:
        return None
    rank = min(found)
    match, where = found[rank]
    cause = CAUSES[rank]
    return Diagnosis(match.expand(cause.text).strip(), cause.cure, splits.get(where or ""), cause.error)
