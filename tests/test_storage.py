"""Part files, plain or packed by a job."""

import gzip
import random

import pytest

from predictions.errors import InputError
from predictions.storage import ReleaseFolder, Storage

LINES = [b"%d\t%d\n" % (number, random.Random(number).getrandbits(200)) for number in range(5000)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "name" / "release" / "scored").mkdir(parents=True)
    return ReleaseFolder(Storage(str(tmp_path), "name"), "release")


def write(folder, name, data):
    path = f"{folder.path}/scored/{name}"
    folder.storage.fs.pipe_file(path, data)
    return path


def test_a_packed_file_has_the_same_blocks_from_any_offset(folder):
    data = b"".join(LINES)
    plain, packed = write(folder, "part-00000", data), write(folder, "part-00001.gz", gzip.compress(data))
    for lines in (0, 1, 2500, 4999, 5000):
        offset = sum(map(len, LINES[:lines]))
        assert b"".join(folder.blocks(plain, offset)) == b"".join(folder.blocks(packed, offset)) == data[offset:]


@pytest.mark.parametrize("cut", [5, 1000, -1])
def test_a_packed_file_that_was_cut_off_is_refused(folder, cut):
    path = write(folder, "part-00000.gz", gzip.compress(b"".join(LINES))[:cut])
    with pytest.raises(InputError, match=r"part-00000\.gz: .*; remove its folder and score again"):
        list(folder.blocks(path))


def test_a_packed_file_that_is_not_gzip_is_refused(folder):
    path = write(folder, "part-00000.gz", b"".join(LINES))
    with pytest.raises(InputError, match="remove its folder and score again"):
        list(folder.blocks(path))


def test_a_part_is_found_packed_or_not_and_is_there_once(folder):
    write(folder, "part-00000", b"1\n")
    write(folder, "part-00001.gz", gzip.compress(b"1\n"))
    assert folder.part("scored", 0).endswith("/part-00000")
    assert folder.part("scored", 1).endswith("/part-00001.gz")
    with pytest.raises(InputError, match="part-00002: does not exist"):
        folder.part("scored", 2)
    write(folder, "part-00001", b"1\n")
    with pytest.raises(InputError, match="part-00001: exists twice"):
        folder.part("scored", 1)


def test_a_file_is_put_whole_or_not_at_all(folder):
    class Broken:
        def read(self, _size):
            raise KeyboardInterrupt

    folder.put("hfiles/p/part-00000", open(__file__, "rb"))  # noqa: SIM115
    data = folder.read("hfiles/p/part-00000")
    with pytest.raises(KeyboardInterrupt):
        folder.put("hfiles/p/part-00000", Broken())
    assert folder.read("hfiles/p/part-00000") == data == open(__file__, "rb").read()  # noqa: SIM115
