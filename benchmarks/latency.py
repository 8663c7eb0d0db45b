"""What requests that were due at given times took: percentiles, in all and by second."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

P999_SAMPLES = 10_000  # fewer say nothing about the slowest thousandth


class Request(NamedTuple):
    """A request: the time in seconds at which it was due, and the seconds from then to its answer."""

    due: float
    seconds: float


def due(requests: Iterable[Request], *intervals: tuple[float, float]) -> list[Request]:
    """Return the requests that were due in one of the intervals."""
    return [request for request in requests if any(begin <= request.due < end for begin, end in intervals)]


def summary(requests: Sequence[Request]) -> dict[str, Any]:
    """Return percentiles in milliseconds and the number of the requests.

    Those of no requests are None, and so is `p999_ms` of fewer than 10,000.
    """
    milliseconds, count = sorted(1e3 * request.seconds for request in requests), len(requests)
    return {
        "p50_ms": round(statistics.median(milliseconds), 3) if count else None,
        "p99_ms": round(milliseconds[int(0.99 * count)], 3) if count else None,
        "p999_ms": round(milliseconds[int(0.999 * count)], 3) if count >= P999_SAMPLES else None,
        "max_ms": round(milliseconds[-1], 3) if count else None,
        "samples": count,
    }


def by_second(requests: Iterable[Request], begin: float, end: float) -> list[dict[str, Any]]:
    """Return the `summary` of the requests that were due in each whole second."""
    seconds: list[list[Request]] = [[] for _second in range(int(end - begin))]
    for request in requests:
        if 0 <= (second := int((request.due - begin) // 1)) < len(seconds):
            seconds[second].append(request)
    return list(map(summary, seconds))
