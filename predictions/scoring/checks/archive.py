"""Check a file of skops before anything in it is loaded: what it unpacks to, the shapes of its arrays, its references.

A header of a few bytes can ask for an array of terabytes. A compressed file can unpack to a thousand times its size. A
walk over objects that hold one another twice can take 2**60 steps.
"""

import ast
import io
import json
import math
import re
import zipfile
from functools import lru_cache
from typing import IO, Any

import numpy as np

from predictions.scoring.checks.errors import ContentsError

_LARGEST_RATIO = 100  # of what a file unpacks to and its own size; deflate reaches 1,000
_ALWAYS_ALLOWED = 1 << 20  # bytes, which a small file may unpack to
_ARRAY, _ARCHIVE = b"\x93NUMPY", b"PK\x03\x04"  # what arrays and sparse matrices begin with
_HEADER = re.compile(r"\{'descr': (.+), 'fortran_order': (?:True|False), 'shape': \(([\d, ]*)\), \} *\n", re.DOTALL)


def check_archive(file: IO[bytes], schema: str = "schema.json") -> None:
    """Check a zip file of arrays.

    Args:
        file: the file, open.
        schema: the member that describes the objects; sparse matrices, which are zip files themselves, have none.

    Raises:
        ContentsError: it would unpack to too much, has an array of objects or one whose header does not fit its bytes,
            or its objects refer to one another too often.
        zipfile.BadZipFile: it is not a zip file.
    """
    allowed = file.seek(0, io.SEEK_END) * _LARGEST_RATIO + _ALWAYS_ALLOWED
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > allowed:
            raise ContentsError(f"it unpacks to more than {_LARGEST_RATIO} times its size")
        if len({member.filename for member in members}) < len(members):
            raise ContentsError("a file comes twice in it")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ContentsError(f"{member.filename} is compressed in another way than deflate")
            if member.filename == schema:
                _check_references(archive.read(member))
                continue
            with archive.open(member) as content:
                start = content.read(len(_ARRAY))
                if start == _ARRAY:
                    _check_array(content, member)
                elif start.startswith(_ARCHIVE):
                    check_archive(io.BytesIO(archive.read(member)), "")


def _check_array(content: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Check an array whose first bytes have been read."""
    version = content.read(2)
    length = int.from_bytes(content.read(2 if version == b"\x01\x00" else 4), "little")
    header = content.read(length)
    match = _HEADER.fullmatch(header.decode("latin1"))
    if not match:
        raise ContentsError(f"{member.filename} has another header than numpy writes")
    dtype = _dtype(match[1])
    count = math.prod(int(number) for number in match[2].split(",") if number.strip())
    size = member.file_size - len(_ARRAY) - (4 if version == b"\x01\x00" else 6) - length
    if dtype.hasobject:
        raise ContentsError(f"{member.filename} is an array of objects, which numpy would unpickle")
    if count * dtype.itemsize != size or (count and not dtype.itemsize):
        raise ContentsError(f"{member.filename} has {size:,} bytes, but its header says {count:,} of {dtype}")


@lru_cache(maxsize=64)
def _dtype(text: str) -> np.dtype[Any]:
    return np.lib.format.descr_to_dtype(ast.literal_eval(text))


def _check_references(schema: bytes) -> None:
    """Raise ContentsError if the objects, each counted as often as it is referred to, are more than the schema's bytes.

    When skops reads an ID a second time, it walks the first object with it again. When it writes, it repeats the object
    with all that it holds, so a schema that it wrote has several bytes for each.
    """
    sizes: dict[Any, int] = {}

    def size(node: Any) -> int:
        if isinstance(node, list):
            return sum(map(size, node))
        if not isinstance(node, dict):
            return 0
        id_ = node.get("__id__")
        if id_ in sizes:
            return sizes[id_]
        if id_ is not None:
            sizes[id_] = 1
        total = 1 + sum(map(size, node.values()))
        if id_ is not None:
            sizes[id_] = total
        return total

    if size(json.loads(schema)) > len(schema):
        raise ContentsError("its objects refer to one another too often")
