"""Releases: one run's predictions, whole and immutable, and the pointer that says which one is served."""

import re
from datetime import UTC, datetime

from predictions.errors import InputError

_ID_FORMAT = "%Y%m%dT%H%M%SZ"
_ID = re.compile(r"\d{8}T\d{6}Z")


def new_release_id() -> str:
    """Return an ID for a release that starts now: the time in UTC, to the second."""
    return datetime.now(UTC).strftime(_ID_FORMAT)


def is_release_id(text: str) -> bool:
    """Whether a name is that of a release."""
    return _ID.fullmatch(text) is not None


def release_time(release: str) -> datetime:
    """Return when a release was started.

    Raises:
        InputError: it is no release ID.
    """
    try:
        return datetime.strptime(release, _ID_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise InputError(f"{release!r} is not a release: they are times like {new_release_id()}") from None


def scored_at(release: str) -> bytes:
    """Return the field `scored` of a release's prediction lines: its time in milliseconds since 1970."""
    return b"%d" % int(release_time(release).timestamp() * 1000)


def release_table(name: str, release: str) -> str:
    """Return the name of the HBase table that holds a release's predictions."""
    return f"{name}.{release}"
