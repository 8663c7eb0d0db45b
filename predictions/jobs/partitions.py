"""Write the partition file of Hadoop's TotalOrderPartitioner: the first row key of each reducer but the first.

It is a SequenceFile, version 6, uncompressed, of Text keys and NullWritable values (Hadoop's API documentation,
`org.apache.hadoop.io.SequenceFile`, "Uncompressed SequenceFile Format").
"""

import struct
from collections.abc import Iterable

_SYNC = b"predictions-sync"  # 16 bytes, arbitrary but fixed, so that the same input gives the same bytes


def partition_file(split_points: Iterable[bytes]) -> bytes:
    """Return the file's bytes for split points in ascending order."""
    header = [
        b"SEQ\x06",
        _text(b"org.apache.hadoop.io.Text"),
        _text(b"org.apache.hadoop.io.NullWritable"),
        b"\0\0",  # neither values nor blocks are compressed
        struct.pack(">i", 0),  # no metadata
        _SYNC,
    ]
    keys = [_text(point) for point in split_points]
    records = [struct.pack(">ii", len(key), len(key)) + key for key in keys]  # a NullWritable has no bytes
    return b"".join(header + records)


def _text(value: bytes) -> bytes:
    if len(value) > 127:
        raise ValueError("a text over 127 bytes has a length of several bytes, which no split point needs")
    return bytes([len(value)]) + value
