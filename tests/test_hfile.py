"""`predictions hfile`: its output for valid files, and its errors."""

from test_hfiles import TIME, orders, write


def test_a_file_is_verified_and_printed(predictions, tmp_path):
    write(tmp_path / "f", orders(3))
    verified = predictions("hfile", "verify", str(tmp_path / "f"))
    facts = dict(
        line.split(maxsplit=1) for line in verified.stdout.splitlines() if not line.startswith(("data", "index"))
    )
    assert (verified.returncode, facts["rows"], facts["cells"], facts["codec"]) == (0, "3", "6", "NONE")
    printed = predictions("hfile", "dump", str(tmp_path / "f"))
    assert printed.stdout.splitlines()[:2] == [
        f"0000:0000\tp:prediction\t{TIME}\t0",
        f"0000:0000\tp:record\t{TIME}\t0000000000000000",
    ]
    assert len(printed.stdout.splitlines()) == 6


def test_any_bytes_are_one_line_a_cell(predictions, tmp_path):
    write(tmp_path / "f", ([b"a\tb\nc"], {b"x": [b"\\\r\n\t"]}, [TIME]))
    printed = predictions("hfile", "dump", str(tmp_path / "f"))
    assert printed.stdout == f"a\\tb\\nc\tp:x\t{TIME}\t\\\\\\r\\n\\t\n"


def test_an_error_is_one_line(predictions, tmp_path):
    write(tmp_path / "f", orders(3))
    data = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    (tmp_path / "g").write_bytes(b"no HFile")
    for name, code, message in (
        ("f", 5, "f: at byte 0: a checksum does not match its bytes"),
        ("g", 5, "g: at byte 0: this is not an HFile, or its end is missing"),
        ("h", 2, "h: [Errno 2] No such file"),
        ("hdfs://nowhere/f", 2, "hdfs://nowhere/f: "),
    ):
        for command in ("verify", "dump"):
            result = predictions("hfile", command, name if ":" in name else str(tmp_path / name))
            assert (result.returncode, len(result.stderr.splitlines())) == (code, 1)
            assert message in result.stderr


def test_a_time_after_the_year_9999(predictions, tmp_path):
    write(tmp_path / "f", ([b"a"], {b"x": [b"1"]}, [1 << 50]))
    assert "1,125,899,906,842,624 ms after 1970" in predictions("hfile", "verify", str(tmp_path / "f")).stdout
