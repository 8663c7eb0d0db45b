from hypothesis import given
from hypothesis import strategies as st

from predictions.formats.prediction_line import parse_line
from predictions.formats.record_line import escape, feature_fields, fingerprints, split_lines, write_rows
from predictions.formats.row_key import row_keys
from predictions.formats.unreadable import KEY, Unreadable, file_lines, find, prediction_lines, sift

FIELDS = 3

raw_lines = st.binary().map(lambda line: line.replace(b"\n", b"")) | st.sampled_from(
    [b"", b"\t", b"1\t2", b"1\t2\t3\t4", b"\xff\xfe", b"\r", b"\\N", b"a\t\\N: b\t\\", "\u2028\x85: é".encode()]
)
record_lines = st.tuples(st.text(min_size=1), st.text(), st.text()).map(
    lambda row: b"\t".join(escape(value.encode(errors="replace")) for value in row)
)


def block_of(lines):
    return b"".join(line + b"\n" for line in lines)


def features_of(sifted):
    return list(feature_fields(sifted.block, sifted.ends))


def test_a_block_of_records_is_left_as_it_is():
    block = "1\ta\t0\né\t\t\\N\n".encode()
    sifted = sift(block, FIELDS, "stdin", 1)
    assert (sifted.block, sifted.record_ids, sifted.unreadable) == (block, [b"1", "é".encode()], [])
    assert features_of(sifted) == [b"a", b""]


def test_unreadable_lines_are_sorted_out_with_their_reasons():
    lines = [
        *(b"1\ta\t0", b"2\ta", b"\ta\t0", b"\\N\ta\t0", b"x" * 32763 + b"\ta\t0", b"a\\qb\ta\t0", b"\xff\ta\t0"),
        *(b"3\ta\tb\t0", b"", b"4\ta\t0"),
    ]
    sifted = sift(block_of(lines), FIELDS, "part-00001+0", 8)
    assert sifted.block == b"1\ta\t0\n4\ta\t0\n"
    assert sifted.record_ids == [b"1", b"4"]
    assert features_of(sifted) == [b"a", b"a"]
    assert sifted.unreadable == [
        Unreadable("part-00001+0", 8 + index, reason, lines[index])
        for index, reason in {
            1: "2 fields, not 3",
            2: "the ID is empty",
            3: "the ID is NULL",
            4: "the ID is 32,763 bytes long; a row key can hold 32,762",
            5: "the ID is not escaped as COPY escapes it",
            6: "the ID is not valid UTF-8",
            7: "4 fields, not 3",
            8: "1 fields, not 3",
        }.items()
    ]


def test_a_block_may_have_no_record_at_all():
    unreadable = [Unreadable("stdin", number, "1 fields, not 3", b"") for number in (1, 2)]
    sifted = sift(b"\n\n", FIELDS, "stdin", 1)
    assert (sifted.block, sifted.record_ids, sifted.unreadable) == (b"", [], unreadable)
    assert features_of(sifted) == []


@given(st.lists(raw_lines | record_lines, min_size=1))
def test_each_line_is_a_record_or_is_sorted_out_whatever_its_neighbours(lines):
    sifted = sift(block_of(lines), FIELDS, "stdin", 1)
    single_lines = [sift(line + b"\n", FIELDS, "stdin", number) for number, line in enumerate(lines, 1)]
    assert sifted.unreadable == [line for single in single_lines for line in single.unreadable]
    assert sifted.block == b"".join(single.block for single in single_lines)
    assert sifted.record_ids == [record_id for single in single_lines for record_id in single.record_ids]
    assert features_of(sifted) == [features for single in single_lines for features in features_of(single)]
    assert len(sifted.record_ids) + len(sifted.unreadable) == len(lines)


splits = st.sampled_from(["stdin", "part-00007+128", "a: b:c+0", "tab\there\\", "é+1"])
reasons = st.sampled_from(["2 fields, not 3", "the ID is empty", "the ID is not valid UTF-8"])


@given(st.lists(st.builds(Unreadable, splits, st.integers(1, 10**12 - 1), reasons, raw_lines), min_size=1))
def test_the_lines_come_back_unchanged_from_among_prediction_lines(lines):
    carried = prediction_lines(lines, b"1795362300000")
    assert len(split_lines(carried)) == len(lines)
    assert all(parse_line(line).scored == b"1795362300000" for line in split_lines(carried))
    # The ID or the error of a prediction line may look like an unreadable line.
    ordinary = write_rows(
        [row_keys([b"unreadable:x:1"]) + [b"0"] * 5, [b"0000:x", *[b"\\N"] * 4, b"unreadable:y:2: z"]]
    )
    assert list(find(ordinary + carried)) == lines
    assert list(find(ordinary)) == []


def test_the_keys_sort_behind_every_row_key_and_by_the_line_within_a_split():
    lines = [Unreadable("part-00001+0", number, "the ID is empty", b"") for number in (2, 10, 10**9, 10**12 - 1)]
    keys = [line.partition(b"\t")[0] for line in split_lines(prediction_lines(lines, b"1"))]
    assert keys[0] == b"unreadable:part-00001+0:000000000002"
    assert keys == sorted(keys)
    assert all(f"{prefix:04x}:".encode() + b"\xff" < KEY for prefix in range(1 << 16))


def test_the_file_for_a_person_shows_each_line_as_it_stands():
    lines = [Unreadable("part-00000+0", 2, "2 fields, not 3", b"2\tAT"), Unreadable("x", 30, "r", b"\xff\\N\r")]
    assert file_lines(lines) == b"part-00000+0\t2\t2 fields, not 3\t2\tAT\nx\t30\tr\t\xff\\N\r\n"


def test_the_fingerprint_of_a_record_does_not_depend_on_what_was_sorted_out():
    sifted = sift(b"short\n1\ta\t0\n", FIELDS, "stdin", 1)
    assert fingerprints(features_of(sifted)) == fingerprints([b"a"])
