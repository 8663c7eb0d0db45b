"""What the reducers of a scoring job compare, where the current release's lines can be had and where they cannot."""

import json

import pytest
from test_comparison import BINARY, blocks, of

from predictions.comparison.comparison import compare
from predictions.errors import InputError
from predictions.task import current as against
from predictions.task import download
from predictions.task.current import Against, comparison_name, read_state, write_state

BEFORE = of(*[(b"0", b"0.9"), (b"1", b"0.8"), (b"1", b"0.7")] * 30)
AFTER = of(*[(b"1", b"0.9"), (b"1", b"0.8"), None] * 31)
POINTS = ["4000", "c000"]


def made(release="20261121T154500Z"):
    return Against.parse(Against.of(release, BINARY, ["8000"], ["/0", "/1"], POINTS).to_json())


def part(lines, start, stop):
    return [block for block in ranges(lines, start, stop) if block]


def ranges(lines, start, stop):
    for block in blocks(lines, iter([7] * 99)):
        kept = [line + b"\n" for line in block.split(b"\n")[:-1] if line >= start and (not stop or line < stop)]
        yield b"".join(kept)


@pytest.fixture
def files(monkeypatch):
    """The current release's part files, which are others than the regions."""
    parts = {"/0": part(BEFORE, b"", b"8000"), "/1": part(BEFORE, b"8000", b"")}
    monkeypatch.setattr(against, "blocks", lambda path: iter(parts[path]))
    return parts


BOUNDS = [(b"", b"4000"), (b"4000", b"c000"), (b"c000", b"")]


def test_the_regions_together_are_what_is_found_in_one_piece(files, tmp_path):
    found = None
    for number, bounds in enumerate(BOUNDS):
        compared = made().compare(iter(part(AFTER, *bounds)), number)
        write_state(compared, str(tmp_path), number)
        again = read_state(BINARY, (tmp_path / comparison_name(number)).read_bytes())
        if found:
            found.merge(again)
        else:
            found = again
    whole = compare(blocks(BEFORE, iter([])), blocks(AFTER, iter([])), BINARY)
    rounded = (
        json.loads(json.dumps(each.as_json()), parse_float=lambda text: round(float(text), 9))
        for each in (found, whole)
    )
    assert next(rounded) == next(rounded)
    assert (found.before.rows, found.after.failed) == (90, 31)


def test_without_a_current_release_the_lines_alone_are_looked_at():
    found = made(release=None).compare(iter(part(AFTER, *BOUNDS[0])), 0)
    assert (found.before.rows, found.after.rows > 0, found.both) == (0, True, 0)


@pytest.mark.parametrize("fault", [ConnectionRefusedError("no"), EOFError("cut"), ValueError("403"), KeyError("dfs")])
def test_where_they_cannot_be_had_every_line_is_written_all_the_same(files, monkeypatch, capsys, fault):
    def broken(path):
        yield files[path][0]
        raise fault

    monkeypatch.setattr(against, "blocks", broken)
    written = iter(part(AFTER, *BOUNDS[1]))
    assert made().compare(written, 1) is None
    assert next(written, None) is None
    assert "the lines of release 20261121T154500Z cannot be had, nothing is compared" in capsys.readouterr().err


def test_a_fault_of_the_own_lines_is_none_of_theirs(files):
    def broken():
        yield from part(AFTER, *BOUNDS[1])
        raise InputError("row key comes after")

    with pytest.raises(InputError, match="comes after"):
        made().compare(broken(), 1)


def test_a_server_that_is_not_there_is_one_of_these_faults(monkeypatch):
    monkeypatch.setenv("mapreduce_task_output_dir", "hdfs://localhost:9/out")
    monkeypatch.setenv("dfs_namenode_http_address", "0.0.0.0:9")
    with pytest.raises(download.FAILURES):
        next(download.blocks("/scored/part-00000.gz"))
    monkeypatch.setenv("hadoop_security_authentication", "kerberos")
    with pytest.raises(download.FAILURES, match="ticket"):
        next(download.blocks("/scored/part-00000.gz"))
