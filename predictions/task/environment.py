"""What Hadoop tells a streaming task of itself: the job's properties, in its environment with `_` for each `.`."""

import os
import sys

_JOB, _ATTEMPT = "mapreduce_job_id", "mapreduce_task_attempt_id"
_FILE, _START = "mapreduce_map_input_file", "mapreduce_map_input_start"
_PARTITION = "mapreduce_task_partition"

# A task has one core: scikit-learn's thread pools would only fight over it.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def in_job() -> bool:
    """Whether a job runs this script: a driver reads its counters. Otherwise somebody typed a pipe."""
    return _JOB in os.environ


def split_name() -> str:
    """Return the name of the input: `FILE+OFFSET` of a job's split, `stdin` of a pipe."""
    file = input_name()
    return f"{file}+{os.environ.get(_START, '0')}" if file else "stdin"


def input_name() -> str | None:
    """Return the name of the input file; None in a pipe."""
    file = os.environ.get(_FILE)
    return os.path.basename(file) if file else None


def partition() -> int:
    """Return the number of a reduce task, so of its part file; 0 in a pipe, which has only one."""
    return int(os.environ.get(_PARTITION, "0"))


def status(text: str) -> None:
    """Tell Hadoop in a line what the task does; it also is the sign of life that the time limit of a task asks for."""
    print(f"reporter:status:{text}", file=sys.stderr, flush=True)


def attempt() -> int:
    """Return how many attempts of this task went before this one."""
    return int(os.environ.get(_ATTEMPT, "0").rpartition("_")[2])
