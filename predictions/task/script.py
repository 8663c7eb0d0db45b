"""Run the work of mapper.py, reducer.py or the loader's task: report its counters, and turn errors into exit codes."""

import ctypes
import faulthandler
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout

from predictions.errors import InternalError, PredictionsError
from predictions.formats import counters

# Parameters of glibc's mallopt (its manual page): free memory at the end of the heap is returned to the system if it is
# larger than the first, and what is larger than the second is allocated apart, and returned once it is freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _APART_BYTES = 1 << 30, 32 << 20


def run(name: str, work: Callable[[Counter[str]], PredictionsError | None], *counted: str) -> int:
    """Do a script's work and report its counters.

    While it works, what libraries and own code print goes to standard error, so the script's lines stay whole.

    Args:
        name: of the script; error messages begin with it.
        work: adds to the counters that it is given, and writes to the standard output that it took before; returns an
            error if its output is complete but must not be used.
        counted: the names of the counters, which all start at 0.

    Returns:
        The exit code: 0, or that of the error, which is printed to stderr in one line (`predictions.errors`).
    """
    _keep_memory()
    faulthandler.enable()  # if a library crashes, the log has at least the stack
    counts = Counter(dict.fromkeys(counted, 0))
    try:
        with redirect_stdout(sys.stderr):
            refusal = work(counts)
        sys.stdout.flush()
        counters.report(sys.stderr, **counts)
        if refusal:
            raise refusal
    except PredictionsError as error:
        if isinstance(error, InternalError) and error.__cause__:
            traceback.print_exception(error.__cause__)
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _keep_memory() -> None:
    """Keep the memory of a block for the next one: the system clears each page that it gives, a tenth of the time."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # which other C libraries lack
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _APART_BYTES)
