"""The plan of a load, as a job's tasks read it, and the names of the parts."""

from itertools import pairwise

import pytest

from loader.plan import Plan
from predictions.errors import InputError
from predictions.formats.document import read, to_file
from predictions.formats.names import PACKED, part_name, part_number
from predictions.formats.row_key import split_points
from predictions.hbase.server import Server

RELEASE = "20261122T154500Z"


def plan(points=(), **values):
    return Plan(Server("db7", 9090), "orders", RELEASE, "0123-4567", list(points), **values)


@pytest.mark.parametrize("rate", [None, 0.5])
@pytest.mark.parametrize(
    "server",
    [Server("127.0.0.1", 9090), Server("db7", 1, "framed", "compact", True, "/ca é.pem", 0.5, "hbase.load_timeout")],
)
def test_a_plan_survives_as_json(server, rate):
    original = Plan(server, "orders", RELEASE, "0123-4567", ["4000", "8000"], rate)
    assert read(Plan, to_file(original), "plan.json") == original


def test_a_plan_names_its_table():
    assert plan().table == f"orders.{RELEASE}"


@pytest.mark.parametrize("regions", [1, 2, 7, 4096])
def test_the_ranges_of_the_parts_are_next_to_each_other_and_leave_nothing_out(regions):
    points = [point.decode() for point in split_points(regions)]
    ranges = [plan(points).range(part) for part in range(plan(points).parts)]
    assert len(ranges) == regions
    assert (ranges[0][0], ranges[-1][1]) == (b"", b"")
    assert all(stop == start for (_start, stop), (start, _stop) in pairwise(ranges))
    assert [start.decode() for start, _stop in ranges[1:]] == points


@pytest.mark.parametrize(("part", "name"), [(0, "part-00000"), (42, "part-00042"), (123_456, "part-123456")])
def test_parts_are_named_as_hadoop_names_them(part, name):
    assert (part_name(part), part_number(name)) == (name, part)
    assert part_number(name + PACKED) == part


@pytest.mark.parametrize(
    "name",
    [
        "",
        "part-",
        "part-0000",
        "part-00000.bz2",
        "part-00000.gz.gz",
        "part-00000\n",
        "_SUCCESS",
        "part-r-00000",
        "xpart-00000",
        "part-0000x",
    ],
)
def test_a_file_of_another_name_is_no_part(name):
    with pytest.raises(InputError) as error:
        part_number(name)
    assert str(error.value) == f"{name}: not a part file; part files are called part-00000, part-00001 and so on"
