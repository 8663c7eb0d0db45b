"""Memory of the scripts, as processes: it does not grow with the number of records."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

from predictions.comparison.comparison import Compared
from predictions.comparison.distribution import SHARES, Bins
from predictions.formats.document import to_file
from predictions.formats.prediction_line import parse_line
from predictions.formats.record_line import field_ends, first_fields, split_lines
from predictions.formats.row_key import row_keys
from predictions.formats.unscored import unscored_lines
from predictions.task.current import Current, comparison_name

RELEASE = "20261122T154500Z"
FEW = 60_000
GROWTH = 1.15  # limit for the peak with five or ten times the records; libraries and allocators vary a little


# The peak that Linux reports includes the memory before exec: little in this launcher, hundreds of MB in pytest.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def peak(command, lines):
    """Run a script over lines, written as it reads them; return its peak memory in KiB and how many lines it wrote."""
    reading, writing = os.pipe()
    with subprocess.Popen(["wc", "-l"], stdin=reading, stdout=subprocess.PIPE) as counter:
        os.close(reading)
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, "-S", "-c", LAUNCHER, sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=writing,
            stderr=subprocess.PIPE,
            env=environment,
        ) as script:
            os.close(writing)
            with script.stdin:
                script.stdin.writelines(lines)
            stderr = script.stderr.read()
        assert script.returncode == 0, stderr
        return int(stderr.splitlines()[-1]), int(counter.stdout.read())


def records(number):
    for index in range(number):
        # Every field differs, and each block has a bad one: the memo does not help, and each block takes the slow path.
        amount = b"none" if index % 20_000 == 0 else b"%d.25" % index
        yield b"id-%d\tcountry %d\t%b\t%d\t0\n" % (index, index, amount, index)


def predictions(number):
    keys = sorted(row_keys([b"id-%d" % index for index in range(number)]))
    for index, key in enumerate(keys):
        line = b"%b\t1\t0.5\t%016x\t1795362300000\t\\N\n" % (key, index)
        yield line
        if index % 100 == 0:
            yield line  # twice


def unscored(number):
    """Return the unscored lines of records, in order."""
    lines = list(records(number))
    for first in range(0, number, FEW):
        block = b"".join(lines[first : first + FEW])
        ends = field_ends(block, 5)
        lines[first : first + FEW] = split_lines(unscored_lines(block, ends, first_fields(block, ends)))
    return [line + b"\n" for line in sorted(lines)]


def write_served(folder, lines):
    """Write a served release; return the path of `current.json`.

    Of the records of the unscored lines, every hundredth has changed; there are as many records that are gone.
    """
    with open(folder / "served", "wb") as file:
        for index, line in enumerate(map(parse_line, lines)):
            record = b"0" * 16 if index % 100 == 0 else line.record
            for key in (line.row_key, line.row_key + b"-gone"):
                file.write(b"%b\t1\t0.5\t%b\t1795362300000\t\\N\n" % (key, record))
    current = Current.of(RELEASE, [Compared(Bins((b"0", b"1"), SHARES))], [], [str(folder / "served")], [])
    (folder / "current.json").write_bytes(to_file(current))
    return folder / "current.json"


@pytest.mark.parametrize(
    ("script", "lines"), [("mapper.py", records), ("reducer.py", predictions)], ids=["mapper", "reducer"]
)
def test_many_more_records_take_no_more_memory(trained, tmp_path, script, lines, full):
    many_records = (10 if full else 5) * FEW
    model = [str(Path(trained) / "model" / "model.json"), RELEASE]
    arguments = model if script == "mapper.py" else ["--hfiles", str(tmp_path / "hfiles")]
    (few, few_lines), (many, many_lines) = (
        peak([str(CHECKOUT / script), *arguments], lines(number)) for number in (FEW, many_records)
    )
    assert (few_lines, many_lines) == (FEW, many_records)
    assert many < GROWTH * few, f"{few:,} and {many:,} KiB"


def test_many_more_records_take_no_more_memory_to_carry_over(trained, tmp_path):
    model = [str(Path(trained) / "model" / "model.json"), RELEASE]
    peaks = []
    for number in (2 * FEW, 4 * FEW):
        mapped = unscored(number)
        current = write_served(tmp_path, mapped)
        options = ["--hfiles", str(tmp_path / "hfiles"), "--current", str(current), "--score", *model]
        kilobytes, lines = peak([str(CHECKOUT / "reducer.py"), *options], mapped)
        peaks.append(kilobytes)
        assert lines == number
        [comparison] = json.loads((tmp_path / "hfiles" / comparison_name(0)).read_bytes())
        assert comparison["gone"] == number
    few, many = peaks  # both have more lines than may wait for the changed records to be scored
    assert many < GROWTH * few, f"{few:,} and {many:,} KiB"
