"""Memory of the scripts, as processes: it does not grow with the number of records."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

from predictions.formats.row_key import row_keys

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
