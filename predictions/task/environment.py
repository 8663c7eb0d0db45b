"""What a Streaming task knows of its job: Hadoop puts the job's properties into its environment, with `_` for `.`."""

import os
import sys

_JOB, _ATTEMPT = "mapreduce_job_id", "mapreduce_task_attempt_id"
_FILE, _START = "mapreduce_map_input_file", "mapreduce_map_input_start"
_PARTITION = "mapreduce_task_partition"

# A task has one core: the threads of scikit-learn's pools would only compete for it.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def in_job() -> bool:
    """Return whether a job runs this script, so that its driver reads the counters; if not, it runs in a pipe."""
    return _JOB in os.environ


def split_name() -> str:
    """Return the name of the input: `FILE+OFFSET` for a job's split, `stdin` in a pipe."""
    file = input_name()
    return f"{file}+{os.environ.get(_START, '0')}" if file else "stdin"


def input_name() -> str | None:
    """Return the name of the input file; None in a pipe."""
    file = os.environ.get(_FILE)
    return os.path.basename(file) if file else None


def partition() -> int:
    """Return the number of the reduce task, which is also its part file's; 0 in a pipe, which has only one."""
    return int(os.environ.get(_PARTITION, "0"))


def status(text: str) -> None:
    """Report in one line what the task is doing; Hadoop kills a task that gives no sign of life for too long."""
    print(f"reporter:status:{text}", file=sys.stderr, flush=True)


def attempt() -> int:
    """Return how many attempts of this task came before this one."""
    return int(os.environ.get(_ATTEMPT, "0").rpartition("_")[2])
