"""The ID digest: 64 bits that identify a set of record IDs, in any order.

It is the sum of the xxh3_64 hashes of the escaped record IDs, modulo 2**64, written as 16 hex digits. The digests of
two sets with no record in common add up to the digest of their union.
"""

from collections.abc import Iterable

import numpy as np
import xxhash


class IdDigest(int):
    """The digest of a set of record IDs; a sum or a multiple of digests is a digest too."""

    def __new__(cls, value: int = 0) -> "IdDigest":
        return super().__new__(cls, value % (1 << 64))

    @classmethod
    def of(cls, record_ids: Iterable[bytes]) -> "IdDigest":
        """Return the digest of escaped record IDs."""
        digests = np.frombuffer(b"".join(map(xxhash.xxh3_64_digest, record_ids)), dtype=">u8")
        return cls(int(digests.sum(dtype=np.uint64)))  # numpy's sum wraps around, as it should

    @classmethod
    def parse(cls, text: str) -> "IdDigest":
        """Read what `str` wrote."""
        return cls(int(text, 16))

    def __add__(self, other: int) -> "IdDigest":
        return IdDigest(int(self) + int(other))

    __radd__ = __add__

    def __mul__(self, times: int) -> "IdDigest":
        return IdDigest(int(self) * times)

    def __str__(self) -> str:
        return f"{int(self):016x}"


NO_IDS = IdDigest()
