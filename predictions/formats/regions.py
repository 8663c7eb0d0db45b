"""Split points: the plain fractions of `0000`..`ffff` that a job's reducers and a release's regions share."""

from collections.abc import Sequence

from predictions.formats.row_key import PREFIX_DIGITS


def split_points(regions: int) -> list[bytes]:
    """Return the first row key of each region but the first, as HBase's HexStringSplit computes them.

    Args:
        regions: how many regions, 1 to 65,536.
    """
    size = 16**PREFIX_DIGITS // regions
    return [f"{size * region:0{PREFIX_DIGITS}x}".encode() for region in range(1, regions)]


def key_range(points: Sequence[str], part: int) -> tuple[bytes, bytes]:
    """Return the row keys between which a part lies: its first one and that of the next, empty at the ends."""
    bounds = ["", *points, ""]
    return bounds[part].encode(), bounds[part + 1].encode()
