"""The reducer in the test's process, a few bytes at a time."""

import io
import re
from collections import Counter
from itertools import groupby, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reducer
from predictions.errors import InputError, RefusedError
from predictions.formats.id_digest import IdDigest
from predictions.formats.prediction_line import NOT_UNIQUE, parse_line
from predictions.formats.record_line import read_blocks, split_lines
from predictions.formats.row_key import row_keys
from predictions.formats.unreadable import Unreadable, prediction_lines

SCORED = b"1795362300000"
NAMES = ("scored", "failed", "duplicates", "conflicts", "written_digest", "duplicates_digest", "unreadable_written")


def line_of(record_id, record=b"aaaaaaaaaaaaaaaa", prediction=b"1", error=b"\\N"):
    [key] = row_keys([record_id])
    return b"\t".join([key, prediction, b"0.9", record, SCORED, error]) + b"\n"


def unreadable(number, split="stdin"):
    return prediction_lines([Unreadable(split, number, "the ID is empty", b"\tx")], SCORED)


def reduce(lines, size=1 << 20, in_order=True):
    counts, conflicts = Counter(dict.fromkeys(NAMES, 0)), []
    ordered = sorted(lines, key=lambda line: line.partition(b"\t")[0]) if in_order else lines
    blocks = read_blocks(io.BytesIO(b"".join(ordered)), size)
    output = b"".join(reducer.count_predictions(reducer.one_line_a_key(blocks, counts, conflicts), counts))
    return output, {name: count % 2**64 for name, count in counts.items()}, conflicts


def test_lines_with_distinct_keys_pass_unchanged():
    lines = sorted(line_of(b"%d" % number) for number in range(100))
    for size in (1, 100, 1 << 20):
        output, counts, conflicts = reduce(lines, size)
        assert output == b"".join(lines)
        assert counts["scored"] == 100
        assert (counts["duplicates"], conflicts) == (0, [])


ids = st.sampled_from([b"1", b"2", b"3", "é".encode(), b"a\\tb", b"42", b"unreadable:x:1"])
prediction_line = st.builds(
    line_of,
    ids,
    st.sampled_from([b"aaaaaaaaaaaaaaaa", b"bbbbbbbbbbbbbbbb"]),
    st.sampled_from([b"1", b"0", b"\\N"]),
    st.sampled_from([b"\\N", b"amount: not a number"]),
)


@given(st.lists(prediction_line), st.sets(st.integers(1, 9)), st.integers(1, 300), st.randoms())
def test_one_line_a_key_and_every_line_counted_whatever_the_blocks(lines, numbers, size, random):
    lines = lines + [unreadable(number) for number in numbers]
    whole, counts, conflicts = reduce(lines)
    random.shuffle(lines)
    assert reduce(lines, size) == (whole, counts, conflicts)

    by_key = {
        key: list(map(parse_line, group))
        for key, group in groupby(sorted(lines), lambda line: line.partition(b"\t")[0])
    }
    by_row_key = {parsed.row_key: parsed for parsed in map(parse_line, split_lines(whole))}
    assert list(by_row_key) == sorted(by_key)
    for key, parsed in by_row_key.items():
        records = {line.record for line in by_key[key]}
        assert parsed.record in records
        if len(records) > 1:
            assert (parsed.prediction, parsed.probability, parsed.error) == (b"\\N", b"\\N", NOT_UNIQUE)
        else:
            assert parsed in by_key[key]
    assert len(lines) == counts["scored"] + counts["failed"] + counts["duplicates"] + counts["unreadable_written"]
    assert counts["conflicts"] == sum(parsed.error == NOT_UNIQUE for parsed in by_row_key.values())
    assert counts["scored"] == sum(parsed.error == b"\\N" for parsed in by_row_key.values())
    assert counts["unreadable_written"] == len(numbers)
    record_ids = [parse_line(line).row_key[5:] for line in lines if not line.startswith(b"unreadable:")]
    assert (counts["written_digest"] + counts["duplicates_digest"] - IdDigest.of(record_ids)) % 2**64 == 0


def test_a_conflict_whose_records_are_in_different_blocks_is_found():
    equal, conflicting = line_of(b"7"), line_of(b"7", record=b"bbbbbbbbbbbbbbbb")
    for lines in (
        [equal] * 40 + [conflicting],
        [conflicting] + [equal] * 40,
        [equal] * 20 + [conflicting] + [equal] * 20,
    ):
        output, counts, conflicts = reduce(lines, size=2 * len(equal))
        assert split_lines(output) == [
            b"\t".join([*row_keys([b"7"]), b"\\N", b"\\N", b"aaaaaaaaaaaaaaaa", SCORED, NOT_UNIQUE])
        ]
        assert (counts["conflicts"], counts["failed"], counts["duplicates"], conflicts) == (1, 1, 40, ["7"])
        assert counts["scored"] == 0


def test_the_line_of_a_conflict_does_not_depend_on_the_order_of_its_records():
    # The shuffle gives the records of a key in any order.
    lines = [line_of(b"7", record=letter * 16, prediction=b"%d" % n) for n, letter in enumerate([b"c", b"a", b"b"])]
    assert len({reduce(list(order))[0] for order in permutations(lines)}) == 1


def test_five_examples_of_conflicts_are_kept_and_all_are_counted():
    lines = [line_of(b"%d" % number, record=record * 16) for number in range(9) for record in (b"a", b"b")]
    _output, counts, conflicts = reduce(lines, size=100)
    assert counts["conflicts"] == 9
    assert len(set(conflicts)) == len(conflicts) == 5
    error = reducer.refusal(counts, conflicts)
    assert isinstance(error, InputError)
    assert re.search(
        "the ID is not unique: 9 IDs stand for different records, for example .*, .*; give each", str(error)
    )


def test_unreadable_lines_come_last_and_are_refused():
    lines = [unreadable(12), unreadable(2), line_of(b"1"), unreadable(1, "part-00001+0"), line_of(b"2")]
    output, counts, conflicts = reduce(lines)
    assert split_lines(output)[2:] == [
        line[:-1] for line in (unreadable(1, "part-00001+0"), unreadable(2), unreadable(12))
    ]
    assert counts["unreadable_written"] == 3
    assert counts["written_digest"] == IdDigest.of([b"1", b"2"])
    error = reducer.refusal(counts, conflicts)
    assert isinstance(error, RefusedError)
    assert str(error) == "3 lines could not be read; they come last in the output"


def test_nothing_is_refused_where_records_merely_failed():
    _output, counts, conflicts = reduce([line_of(b"1", prediction=b"\\N", error=b"amount: not a number")])
    assert (counts["failed"], counts["scored"]) == (1, 0)
    assert reducer.refusal(counts, conflicts) is None


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_keys_out_of_order_are_refused_within_a_block_and_over_its_end(size):
    lines = sorted(line_of(b"%d" % number) for number in range(9))
    with pytest.raises(InputError, match="comes after .*sort with LC_ALL=C sort"):
        reduce(lines[::-1], size, in_order=False)


@pytest.mark.parametrize("stdin", [b"\n", b"a\tb\n", b"a\tb\na\tb\n", line_of(b"1") + b"a\tb\n", line_of(b"1")[:-4]])
def test_a_malformed_prediction_line_is_refused(stdin):
    with pytest.raises(InputError, match="a prediction line has 6 fields"):
        reduce([stdin], in_order=False)
