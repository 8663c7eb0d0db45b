"""Load one part, as a map task of a Streaming job or in a plain pipe.

    python -m loader PLAN part-00000 < part-00000

Reads the part's prediction lines, and prints `part TAB rows` after each batch that HBase has acknowledged. In a job,
the part's name is that of Hadoop's input file, and the second argument is left out.
"""

import gc
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from loader.checkpoints import Checkpoint
from loader.part import load_part
from loader.plan import Plan
from predictions.errors import InputError
from predictions.formats.document import read
from predictions.formats.names import part_number
from predictions.formats.record_line import read_blocks
from predictions.hbase.connection import Connection
from predictions.task import environment, script


def skip(stream: BinaryIO, offset: int) -> Iterator[bytes]:
    """Yield a part's blocks of whole lines from an offset on; the bytes before it are read and dropped."""
    while offset and (data := stream.read(min(offset, 1 << 20))):
        offset -= len(data)
    if offset:
        raise InputError("the part is shorter than its checkpoint says; start a new release")
    yield from read_blocks(stream, end=b"")


def main() -> int:
    gc.disable()  # see loader/puts.py
    output = sys.stdout

    def load(counts: Counter[str]) -> None:
        plan = read(Plan, Path(sys.argv[1]).read_bytes(), sys.argv[1])
        name = environment.input_name() or sys.argv[2]

        def report(checkpoint: Checkpoint) -> None:
            print(f"{name}\t{checkpoint.rows}", file=output, flush=True)

        def report_waiting(reason: str) -> None:
            environment.status(f"{name}: waiting for HBase: {reason}")

        with Connection(plan.server, report_waiting) as connection:
            read_from = partial(skip, sys.stdin.buffer)
            counts["loaded"] = load_part(connection, plan, part_number(name), read_from, report).rows

    return script.run("loader", load, "loaded")


if __name__ == "__main__":
    sys.exit(main())
