"""The error of all checks of a model file; `estimator.load` adds the file's name and what to do."""

from typing import Any


class ContentsError(ValueError):
    """A model file holds what its library would not have written; the message is the reason."""


def require(condition: Any, reason: str) -> None:
    """Raise ContentsError unless a condition holds."""
    if not condition:
        raise ContentsError(reason)
