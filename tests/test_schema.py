import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.errors import InputError
from predictions.formats.prediction_line import (
    END_OF_CONFLICT,
    END_OF_SCORED,
    NOT_UNIQUE,
    cells,
    not_unique,
    parse_line,
)
from predictions.formats.record_line import NULL, escape, write_rows


def test_cells_of_a_scored_record():
    line = parse_line(b"3224:42\t1\t0.8312345\t4c35bd09c75a09d9\t1795362300000\t\\N\n")
    assert line.row_key == b"3224:42"
    assert int(line.scored) == 1795362300000
    assert cells(line) == {b"p:prediction": b"1", b"p:probability": b"0.8312345", b"p:record": b"4c35bd09c75a09d9"}


def test_cells_of_a_failed_record_and_of_a_text():
    failed = parse_line(b"k\t\\N\t\\N\tf\t1\tamount: not a\\tnumber")
    assert cells(failed) == {b"p:record": b"f", b"p:error": b"amount: not a\tnumber"}


def test_a_line_of_another_shape_is_refused():
    with pytest.raises(InputError, match="6 fields, but this one has 2"):
        parse_line(b"a\tb\n")


def test_the_line_of_an_id_that_stands_for_different_records():
    line = parse_line(b"3224:42\t1\t0.83\t4c35bd09c75a09d9\t1795362300000\t\\N\n")
    conflict = not_unique(line)
    assert conflict == b"3224:42\t\\N\t\\N\t4c35bd09c75a09d9\t1795362300000\tthe ID stands for different records"
    assert not_unique(parse_line(conflict)) == conflict
    assert cells(parse_line(conflict)) == {b"p:record": b"4c35bd09c75a09d9", b"p:error": NOT_UNIQUE}


values = st.binary() | st.sampled_from([b"\\N", NOT_UNIQUE, b"a\t\\N", b"a\t" + NOT_UNIQUE])


@given(st.lists(st.tuples(values, st.none() | values), min_size=1))
def test_scored_lines_are_counted_by_their_ends_whatever_stands_in_the_others(rows):
    block = write_rows(
        [escape(value), NULL, NULL, b"f", b"1", NULL if error is None else escape(error)] for value, error in rows
    )
    assert block.count(END_OF_SCORED) == sum(error is None for _value, error in rows)
    assert block.count(END_OF_CONFLICT) == sum(error == NOT_UNIQUE for _value, error in rows)
