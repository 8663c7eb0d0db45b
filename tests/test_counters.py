import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.formats import counters


def written(**counts):
    stderr = io.StringIO()
    counters.report(stderr, **counts)
    return stderr.getvalue()


def test_counters_as_streaming_takes_them():
    assert written(read=3, failed=0) == "reporter:counter:predictions,read,3\nreporter:counter:predictions,failed,0\n"


@pytest.mark.parametrize(
    ("count", "amount"),
    [
        (0, 0),
        (2**63 - 1, 2**63 - 1),
        (2**63, -(2**63)),
        (2**64 - 1, -1),
        # A mapper adds up the digests of its blocks, each below 2**64, without wrapping.
        (3 * 2**64 + 5, 5),
    ],
)
def test_a_count_beyond_hadoops_64_bits_is_written_in_twos_complement(count, amount):
    assert written(digest=count) == f"reporter:counter:predictions,digest,{amount}\n"


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_digests_add_up_modulo_2_to_the_64_however_often_they_wrap(digests):
    sums = counters.parse_lines("".join(written(digest=digest, tasks=1) for digest in digests))
    assert sums.get("tasks", 0) == len(digests)
    assert sums.get("digest", 0) % 2**64 == sum(digests) % 2**64
    assert -(2**63) <= sums.get("digest", 0) < 2**63


def test_counter_lines_are_found_among_other_lines():
    stderr = (
        "warning: reporter:counter:predictions,read,7 is no counter line\n"
        "reporter:counter:predictions,read,3\n"
        "reporter:counter:another,read,100\n"
        "reporter:status:working\n"
        "reporter:counter:predictions,read,x\n"
        "reporter:counter:predictions,read_digest,-5\n"
        "reporter:counter:predictions,read,4\n"
    )
    assert counters.parse_lines(stderr) == {"read": 7, "read_digest": -5}
    assert counters.parse_lines("") == {}


def test_counters_from_hadoops_report():
    report = """
2026-11-22 17:00:00,000 INFO  [main] mapreduce.Job: Counters: 57
\tMap-Reduce Framework
\t\tMap input records=336776
\tpredictions
\t\tduplicates=0
\t\tread=336776
\t\tread_digest=-3759157911297643583
\t\tscored=336775
\tFile Output Format Counters
\t\tBytes Written=19384534
"""
    assert counters.parse_report(report) == {
        "duplicates": 0,
        "read": 336776,
        "read_digest": -3759157911297643583,
        "scored": 336775,
    }
    assert counters.parse_report("no report") == {}
