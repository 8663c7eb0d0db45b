"""The completeness proof: every record that was exported is accounted for at each step, in counts and in ID digests."""

from collections.abc import Iterator
from typing import Any, NamedTuple

DIGESTS = 1 << 64


class Account(NamedTuple):
    """What one step says of the records.

    Args:
        step: what was done with them.
        rows: how many.
        id_digest: of their IDs (`records.id_digest`).
    """

    step: str
    rows: int
    id_digest: int

    def __str__(self) -> str:
        return f"{self.rows:,} {self.step} (ID digest {self.id_digest:016x})"


def accounts(manifest: dict[str, Any]) -> list[Account]:
    """Return the two sides of each step of a release that was loaded, one after the other.

    Args:
        manifest: the release's. An unreadable line has no ID to digest, so a release with one does not come to this.
    """
    exported, scored, loaded = (manifest[step] for step in ("export", "scored", "loaded"))
    written, duplicates = _digest(scored["id_digest"]), _digest(scored.get("duplicates_digest", "0"))
    rest = scored["duplicates"] + scored["unreadable"]
    return [
        Account("exported", exported["rows"], _digest(exported["id_digest"])),
        Account(
            "scored, failed, duplicate or unreadable",
            scored["scored"] + scored["failed"] + rest,
            (written + duplicates) % DIGESTS,
        ),
        Account("scored or failed", scored["rows"], written),
        Account(
            "loaded",
            sum(part["rows"] for part in loaded["parts"]),
            sum(_digest(part["id_digest"]) for part in loaded["parts"]) % DIGESTS,
        ),
    ]


def faults(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield where two sides part, a line each; none where every record is accounted for."""
    sides = accounts(manifest)
    for before, after in zip(sides[::2], sides[1::2], strict=True):
        if before[1:] != after[1:]:
            yield f"{before}, but {after}"


def _digest(text: str) -> int:
    return int(text, 16)
