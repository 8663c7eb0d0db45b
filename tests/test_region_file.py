"""A region's HFile from its prediction lines: its cells, its facts, and the reducer that writes both."""

import hashlib
import os
import subprocess
import sys
from contextlib import chdir

import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st
from inprocess import script

import reducer
from predictions.errors import InputError
from predictions.formats import document
from predictions.formats.hfile.reader import HFileReader
from predictions.formats.hfile.region_file import RegionFacts, RegionFile, facts_name, hfile_name
from predictions.formats.id_digest import IdDigest
from predictions.formats.prediction_line import cells, columns, parse_line
from predictions.formats.record_line import escape, join_lines, read_blocks
from predictions.formats.row_key import record_id, row_keys
from predictions.formats.unreadable import Unreadable, prediction_lines

TIMES = st.sampled_from([1795362300000, 1795362300001])
FIELD = st.just(b"\\N") | st.text(max_size=8).map(lambda text: escape(text.encode()))


@st.composite
def prediction_lines_of_a_region(draw):
    names = draw(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=30))
    keys = sorted(row_keys([escape(name.encode()) for name in names]))
    record = st.integers(0, 2**64 - 1).map(lambda number: b"%016x" % number)
    return [b"\t".join([key, draw(FIELD), draw(FIELD), draw(record), b"%d" % draw(TIMES), draw(FIELD)]) for key in keys]


def expected_cells(lines):
    return [
        (line.row_key, *column.split(b":"), int(line.scored), value)
        for line in map(parse_line, lines)
        for column, value in sorted(cells(line).items())
    ]


def write(folder, lines, part=0, size=1 << 20):
    path = folder / "lines"
    path.write_bytes(join_lines(lines) if lines else b"")
    with open(path, "rb") as stream, RegionFile(str(folder / "hfiles"), part) as file:
        for block in read_blocks(stream, size):
            file.write(block)
    return file.facts


def read(folder, part=0):
    with open(folder / "hfiles" / hfile_name(part), "rb") as file:
        return [tuple(cell) for cell in HFileReader(file, "x").read()]


@given(prediction_lines_of_a_region(), st.integers(1, 500))
def test_the_hfile_has_the_cells_that_puts_would_write(tmp_path_factory, lines, size):
    folder = tmp_path_factory.mktemp("region")
    facts = write(folder, lines, 3, size)
    expected = expected_cells(lines)
    assert read(folder, 3) == expected
    keys = [parse_line(line).row_key for line in lines]
    data = (folder / "hfiles" / hfile_name(3)).read_bytes()
    assert facts == RegionFacts(
        rows=len(lines),
        id_digest=IdDigest.of(map(record_id, keys)),
        cells=len(expected),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        first=keys[0].decode(),
        last=keys[-1].decode(),
    )
    assert document.read(RegionFacts, (folder / "hfiles" / facts_name(3)).read_bytes(), "facts") == facts


@given(prediction_lines_of_a_region())
def test_columns_are_the_cells_of_all_lines(lines):
    keys, values_by_column, times = columns(join_lines(lines))
    rows = [
        (key, {c: value for c, values in values_by_column.items() if (value := values.value(row)) is not None}, time)
        for row, (key, time) in enumerate(zip(keys.values, times, strict=True))
    ]
    assert rows == [(line.row_key, cells(line), int(line.scored)) for line in map(parse_line, lines)]


def test_a_region_without_rows_has_facts_and_no_file(tmp_path):
    assert write(tmp_path, []) == RegionFacts()
    assert [path.name for path in (tmp_path / "hfiles").rglob("*") if path.is_file()] == [facts_name(0)]


def test_lines_out_of_order_leave_neither_file(tmp_path):
    lines = sorted(b"%b\t1\t0.9\taaaaaaaaaaaaaaaa\t1795362300000\t\\N" % key for key in row_keys([b"1", b"2"]))
    with pytest.raises(InputError, match="comes after"):
        write(tmp_path, lines[::-1])
    assert [path for path in (tmp_path / "hfiles").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"0001:2\t1", "a prediction line has 6 fields, but this one has 2"),
        (b"0001:2\t1\t0.9\taaaaaaaaaaaaaaaa\t1795362300000", "a prediction line has 6 fields, but this one has 5"),
        (
            b"0001:2\t1\t0.9\taaaaaaaaaaaaaaaa\t1795362300000\t\\N\t7",
            "a prediction line has 6 fields, but this one has 7",
        ),
        (b"0001:2\t1\t0.9\taaaaaaaaaaaaaaaa\tx\t\\N", "row b'0001:2': b'x' is not a time"),
        (b"0001:2\t1\t0.9\taaaaaaaaaaaaaaaa\t-1\t\\N", "row b'0001:2': b'-1' is not a time"),
        (
            b"0001:2\t1\t0.9\taaaaaaaaaaaaaaaa\t9999999999999999999999\t\\N",
            "row b'0001:2': b'9999999999999999999999' is",
        ),
    ],
)
def test_malformed_lines_are_named_and_leave_neither_file(tmp_path, line, message):
    good = b"0000:1\t1\t0.9\taaaaaaaaaaaaaaaa\t1795362300000\t\\N"
    write(tmp_path, [good])  # as an earlier run did
    with pytest.raises(InputError, match=message):
        write(tmp_path, [good, line])
    assert [path for path in (tmp_path / "hfiles").rglob("*") if path.is_file()] == []
    ended = run_reducer(tmp_path, [good, line], "--hfiles", "hfiles")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)


def test_a_reducer_that_cannot_write_says_so(tmp_path):
    (tmp_path / "file").touch()
    ended = run_reducer(tmp_path, [], "--hfiles", "file")
    message = b"cannot write an HFile into file"
    assert (ended.returncode, len(ended.stderr.splitlines()), message in ended.stderr) == (2, 1, True)


def run_reducer(folder, lines, *arguments, process=False, **environment):
    if not process:
        with chdir(folder):
            return script(reducer.main, *arguments, stdin=join_lines(lines), **environment)
    return subprocess.run(
        [sys.executable, CHECKOUT / "reducer.py", *arguments],
        input=join_lines(lines),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
    )


def test_the_reducer_writes_an_hfile_as_well_as_its_lines(tmp_path):
    lines = sorted(b"%b\t1\t0.9\taaaaaaaaaaaaaaaa\t1795362300000\t\\N" % key for key in row_keys([b"1", b"2", b"3"]))
    ended = run_reducer(tmp_path, lines, "--hfiles", "hfiles", process=True, mapreduce_task_partition="7")
    assert (ended.returncode, ended.stdout) == (0, join_lines(lines))
    assert read(tmp_path, 7) == expected_cells(lines)


def test_unreadable_lines_are_not_in_the_hfile(tmp_path):
    lines = sorted(b"%b\t1\t0.9\taaaaaaaaaaaaaaaa\t1795362300000\t\\N" % key for key in row_keys([b"1", b"2"]))
    unreadable = prediction_lines([Unreadable("stdin", 1, "the ID is empty", b"")], b"1795362300000").splitlines()
    ended = run_reducer(tmp_path, [*lines, *unreadable], "--hfiles", "hfiles", process=True)
    assert ended.stdout == join_lines([*lines, *unreadable])
    assert read(tmp_path) == expected_cells(lines)
    assert run_reducer(tmp_path, unreadable, "--hfiles", "only").returncode == ended.returncode == 3
    assert [path.name for path in (tmp_path / "only").rglob("*") if path.is_file()] == [facts_name(0)]
