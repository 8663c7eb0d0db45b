"""The comparison in the reducers of a scoring job, with and without access to the served release's lines."""

import gzip
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from test_comparison import BINARY, blocks, by_number, compare

from predictions.comparison.comparison import Compared
from predictions.errors import InputError, InternalError
from predictions.formats.document import to_file
from predictions.formats.prediction_line import parse_line
from predictions.formats.record_line import split_lines
from predictions.task import webhdfs
from predictions.task.current import Current, comparison_name, read_state

BEFORE = by_number(*[(b"0", b"0.9"), (b"1", b"0.8"), (b"1", b"0.7")] * 30)
AFTER = by_number(*[(b"1", b"0.9"), (b"1", b"0.8"), None] * 31)
POINTS = ["4000", "c000"]


def make(tmp_path, release="20261121T154500Z"):
    current = Current.of(release, [Compared(BINARY)], ["8000"], ["hdfs:///0", "hdfs:///1"], POINTS)
    path = tmp_path / "current.json"
    path.write_bytes(to_file(current))
    assert Current.read(path) == current
    return current


def read_one(data):
    return read_state([Compared(BINARY)], data).each[0]


def part(lines, start, stop):
    return [block for block in ranges(lines, start, stop) if block]


def ranges(lines, start, stop):
    for block in blocks(lines, iter([7] * 99)):
        kept = [line + b"\n" for line in block.split(b"\n")[:-1] if line >= start and (not stop or line < stop)]
        yield b"".join(kept)


@pytest.fixture
def files(monkeypatch):
    """The part files of the served release; their ranges are not those of the regions."""
    parts = {"/0": part(BEFORE, b"", b"8000"), "/1": part(BEFORE, b"8000", b"")}
    monkeypatch.setattr(webhdfs, "blocks", lambda path: iter(parts[path]))
    return parts


BOUNDS = [(b"", b"4000"), (b"4000", b"c000"), (b"c000", b"")]


def test_the_comparisons_of_all_regions_add_up_to_that_of_the_releases(files, tmp_path):
    total = None
    for number, bounds in enumerate(BOUNDS):
        make(tmp_path).region(number).compare(iter(part(AFTER, *bounds)), str(tmp_path))
        comparison = read_one((tmp_path / comparison_name(number)).read_bytes())
        if total:
            total.merge(comparison)
        else:
            total = comparison
    whole = compare(blocks(BEFORE, iter([])), blocks(AFTER, iter([])), BINARY)
    rounded = (
        json.loads(json.dumps(comparison.as_json()), parse_float=lambda text: round(float(text), 9))
        for comparison in (total, whole)
    )
    assert next(rounded) == next(rounded)
    assert (total.before.rows, total.after.failed) == (90, 31)


def test_without_a_served_release_only_the_new_lines_are_counted(tmp_path):
    make(tmp_path, release=None).region(0).compare(iter(part(AFTER, *BOUNDS[0])), str(tmp_path))
    comparison = read_one((tmp_path / comparison_name(0)).read_bytes())
    assert (comparison.before.rows, comparison.after.rows > 0, comparison.both) == (0, True, 0)


@pytest.mark.parametrize("fault", [ConnectionRefusedError("no"), EOFError("cut"), ValueError("403"), KeyError("dfs")])
def test_all_lines_are_written_even_if_the_served_release_cannot_be_read(files, tmp_path, monkeypatch, capsys, fault):
    def broken(path):
        yield files[path][0]
        raise fault

    monkeypatch.setattr(webhdfs, "blocks", broken)
    written = iter(part(AFTER, *BOUNDS[1]))
    make(tmp_path).region(1).compare(written, str(tmp_path))
    assert not (tmp_path / comparison_name(1)).exists()
    assert next(written, None) is None
    assert re.search(r"of the served release 20261121T154500Z: .*; not comparing", capsys.readouterr().err)


def test_an_error_in_the_new_lines_is_raised(files, tmp_path):
    def broken():
        yield from part(AFTER, *BOUNDS[1])
        raise InputError("row key comes after")

    with pytest.raises(InputError, match="comes after"):
        make(tmp_path).region(1).compare(broken(), str(tmp_path))


def test_lines_may_be_on_this_machine_packed_or_not(tmp_path):
    (tmp_path / "part-00000").write_bytes(b"".join(part(BEFORE, b"", b"8000")))
    (tmp_path / "part-00001.gz").write_bytes(gzip.compress(b"".join(part(BEFORE, b"8000", b""))))
    parts = [str(tmp_path / name) for name in ("part-00000", "part-00001.gz")]
    current = Current.of("20261121T154500Z", [Compared(BINARY)], ["8000"], parts, [])
    current.region(0).compare(iter(part(BEFORE, b"", b"")), str(tmp_path))
    comparison = read_one((tmp_path / comparison_name(0)).read_bytes())
    assert (comparison.both, comparison.changed, comparison.gone) == (len(LINES), 0, 0)


LINES = split_lines(b"".join(blocks(BEFORE, iter([]))))


def unscored(part):
    """Return what mappers write for the records of prediction lines."""
    for line in map(parse_line, part):
        yield b"%b\t\\N\tfeatures\t%b\t\\N\t\\N\n" % (line.row_key, line.record)


def refuse(_block):
    raise AssertionError("nothing has changed")


def test_lines_are_carried_over_and_compared_block_by_block_in_one_pass(tmp_path, monkeypatch):
    """Only a few blocks are in memory at a time, of the served release as well as of the new one."""
    alive, most, reads = 0, 0, 0

    class Block(bytes):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def read(_path):
        nonlocal alive, most, reads
        reads += 1
        for line in LINES:
            alive += 1
            most = max(most, alive)
            yield Block(line + b"\n")

    monkeypatch.setattr(webhdfs, "blocks", read)
    region = Current.of("20261121T154500Z", [Compared(BINARY)], [], ["hdfs:///0"], []).region(0)
    written = []
    lines = region.carry_over(unscored(LINES), refuse, b"7", Counter(), comparing=True)
    region.compare((written.append(block) or block for block in lines), str(tmp_path))
    found = read_one((tmp_path / comparison_name(0)).read_bytes())
    assert written == [line + b"\n" for line in LINES]
    assert (found.both, found.changed, found.gone, found.appeared) == (len(LINES), 0, 0, 0)
    assert (reads, most < 10) == (1, True)


def test_without_the_lines_nothing_is_carried_over(tmp_path, monkeypatch):
    def broken(_path):
        raise ConnectionRefusedError("no")
        yield

    monkeypatch.setattr(webhdfs, "blocks", broken)
    region = make(tmp_path).region(1)
    with pytest.raises(
        InternalError, match="cannot read the prediction lines of the served release 20261121T154500Z: Conn.*: no"
    ):
        region.compare(region.carry_over(unscored(LINES), refuse, b"7", Counter(), comparing=True), str(tmp_path))
    assert not (tmp_path / comparison_name(1)).exists()


def test_an_unreachable_server_is_one_of_the_failures(monkeypatch):
    monkeypatch.setenv("mapreduce_task_output_dir", "hdfs://localhost:9/out")
    monkeypatch.setenv("dfs_namenode_http_address", "0.0.0.0:9")
    with pytest.raises(webhdfs.FAILURES):
        next(webhdfs.blocks("/scored/part-00000.gz"))
    monkeypatch.setenv("hadoop_security_authentication", "kerberos")
    with pytest.raises(webhdfs.FAILURES, match="ticket"):
        next(webhdfs.blocks("/scored/part-00000.gz"))


@pytest.fixture
def web(monkeypatch):
    """A WebHDFS that sends `web.sent` and announces `web.announced` bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            is_node = self.path.startswith("/data")
            body = web.sent if is_node else json.dumps({"Location": f"http://{address}/data"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(web.announced if is_node else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    web = HTTPServer(("127.0.0.1", 0), Handler)
    address = f"127.0.0.1:{web.server_port}"
    monkeypatch.setenv("mapreduce_task_output_dir", "hdfs://localhost/out")
    monkeypatch.setenv("dfs_namenode_http_address", address)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize("missing", [0, 1, 2, 20, 60])
def test_an_unpacked_part_that_ends_early_is_one_of_the_failures(web, missing):
    """Without its end, the last line could be taken for another one, and be carried over."""
    data = b"".join(line + b"\n" for line in LINES)
    web.announced, web.sent = len(data), data[: len(data) - missing]
    if not missing:
        assert b"".join(webhdfs.blocks("/scored/part-00000")) == data
        return
    with pytest.raises(webhdfs.FAILURES, match=f"{missing} more expected"):
        list(webhdfs.blocks("/scored/part-00000"))
