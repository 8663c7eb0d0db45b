"""What mapper.py, reducer.py and the loader's task share: how a script counts, and how it ends."""

import faulthandler
import sys
import traceback
from collections import Counter
from collections.abc import Callable

from predictions.errors import InternalError, PredictionsError
from predictions.formats import counters


def run(name: str, work: Callable[[Counter[str]], PredictionsError | None], *counted: str) -> int:
    """Do a script's work, and report what it counted.

    Args:
        name: of the script; its message begins with it.
        work: is given the counters, which it adds to; it returns an error where its output is whole but not to be used.
        counted: the counters' names.

    Returns:
        The exit code; 0, or that of the error, which is one line on stderr (`predictions.errors`).
    """
    faulthandler.enable()  # a crash in a library leaves at least its stack in the log
    counts = Counter(dict.fromkeys(counted, 0))
    try:
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
