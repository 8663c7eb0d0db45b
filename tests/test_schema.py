import pytest

from predictions.errors import InputError
from predictions.schema import cells, parse_line, texts


def test_cells_of_a_scored_record():
    line = parse_line(b"3224:42\t1\t0.8312345\t4c35bd09c75a09d9\t1795362300000\t\\N\n")
    assert line.row_key == b"3224:42"
    assert int(line.scored) == 1795362300000
    assert cells(line) == {b"p:prediction": b"1", b"p:probability": b"0.8312345", b"p:record": b"4c35bd09c75a09d9"}


def test_cells_of_a_failed_record_and_of_a_text():
    failed = parse_line(b"k\t\\N\t\\N\tf\t1\tamount: not a\\tnumber")
    assert cells(failed) == {b"p:record": b"f", b"p:error": b"amount: not a\tnumber"}
    assert texts(cells(failed)) == {
        "prediction": None,
        "probability": None,
        "record": "f",
        "error": "amount: not a\tnumber",
    }


def test_a_line_of_another_shape_is_refused():
    with pytest.raises(InputError, match="six|6 fields, this one 2"):
        parse_line(b"a\tb\n")
