"""The names of releases, of their HBase tables, and of their part files (one per region)."""

import re
from datetime import UTC, datetime

from predictions.errors import InputError

PACKED = ".gz"  # a job compresses its part files, and adds this to their names

_PART = re.compile(r"part-(\d{5,})(?:\.gz)?")
_ID_FORMAT = "%Y%m%dT%H%M%SZ"
_ID = re.compile(r"\d{8}T\d{6}Z")


def new_release_id() -> str:
    """Return the ID of a release that starts now: the time in UTC, to the second."""
    return datetime.now(UTC).strftime(_ID_FORMAT)


def is_release_id(text: str) -> bool:
    """Return whether a text has the form of a release ID."""
    return _ID.fullmatch(text) is not None


def release_time(release: str) -> datetime:
    """Return the time at which a release was started.

    Raises:
        InputError: the text is not a release ID.
    """
    try:
        return datetime.strptime(release, _ID_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise InputError(f"{release!r} is not a release ID: give a time like {new_release_id()}") from None


def scored_at(release: str) -> bytes:
    """Return the field `scored` of a release's prediction lines: its start, in milliseconds since 1970 (UTC)."""
    return b"%d" % int(release_time(release).timestamp() * 1000)


def release_table(name: str, release: str) -> str:
    """Return the name of the HBase table that holds a release's predictions."""
    return f"{name}.{release}"


def part_name(part: int) -> str:
    """Return the name of a part file, without the `PACKED` that a job adds."""
    return f"part-{part:05d}"


def part_number(name: str) -> int:
    """Return the number in the name of a part file; InputError if it is another file's name."""
    match = _PART.fullmatch(name)
    if not match:
        raise InputError(f"{name}: not a part file; part files are called {part_name(0)}, {part_name(1)} and so on")
    return int(match[1])
