"""Names: of releases, of their tables in HBase, and of the part files, one for each region."""

import re
from datetime import UTC, datetime

from predictions.errors import InputError

PACKED = ".gz"  # what a job adds to the name of a part file

_PART = re.compile(r"part-(\d{5,})(?:\.gz)?")
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


def part_name(part: int) -> str:
    """Return the name of a part file; a job packs it, and adds `PACKED`."""
    return f"part-{part:05d}"


def part_number(name: str) -> int:
    """Return the number of a part file; InputError where it has the name of none."""
    found = _PART.fullmatch(name)
    if not found:
        raise InputError(f"{name}: no part file: they are called {part_name(0)}, {part_name(1)} and so on")
    return int(found[1])
