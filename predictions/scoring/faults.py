"""Which record it was: a model that raises, or dies, does so for a block; these find the line by halving."""

import faulthandler
import os
import signal
from collections.abc import Callable
from typing import Any

from threadpoolctl import threadpool_limits

from predictions.formats.record_line import join_lines, split_lines


def first_fault(block: bytes, fails: Callable[[bytes], bool]) -> bytes | None:
    """Return the first line of a block that fails by itself; None where no line does.

    Args:
        block: whole lines, at least one, which together fail.
        fails: whether some of the lines fail.
    """
    lines = split_lines(block)
    while len(lines) > 1:
        half = lines[: len(lines) // 2]
        lines = half if fails(join_lines(half)) else lines[len(half) :]
    return lines[0] if fails(join_lines(lines)) else None


def raises(score: Callable[[bytes], Any], block: bytes) -> bool:
    """Whether scoring a block raises."""
    try:
        score(block)
    except Exception:
        return True
    return False


def killing_signal(score: Callable[[bytes], Any], block: bytes) -> str | None:
    """Score a block in a process of its own and return the name of the signal that killed it, if one did."""
    child = os.fork()
    if not child:
        faulthandler.disable()  # one stack in the log will do
        try:
            with threadpool_limits(1):  # OpenMP's threads were not forked, and would be waited for
                score(block)
        finally:
            os._exit(0)  # whatever it raised, the parent will meet itself
    _pid, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
