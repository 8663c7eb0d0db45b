"""Memory that does not grow: the scripts as processes, fed with ever more of the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

from predictions.formats.row_key import row_keys

RELEASE = "20261122T154500Z"
FEW = 60_000
GROWTH = 1.15  # of the peak, for five or ten times the records; libraries and allocators leave some play


# Linux counts what was there before a process became another program, too: here little, in pytest hundreds of MB.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def peak(command, lines):
    """Run a script over lines, written as it takes them, and return its peak memory in KiB and its output's lines."""
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
            said = script.stderr.read()
        assert script.returncode == 0, said
        return int(said.splitlines()[-1]), int(counter.stdout.read())


def records(number):
    for index in range(number):
        # Every field differs, and one in a block is bad: no memo helps, and each block takes the slower way.
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
