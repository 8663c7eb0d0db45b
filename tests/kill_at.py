"""Runs of the command line that are killed by kill -9 at a point of its own code, or held there.

    python kill_at.py

Each line on stdin is a run, in JSON (see `become`); out goes its process ID, and its exit code once it has ended. A run is
a fork of this process, which has imported what takes seconds, and has neither threads nor connections.

A point is MODULE:FUNCTION:WHEN[:TEXT]. The run is killed when the function is called (`enter`) or has done its work
(`exit`), with a text in the call in which an argument has it; or when what the function was given as `progress` is told
that half is done (`progress`). With `hold` it waits where the function is called, until there is a file `go`.
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import time
from functools import wraps
from pathlib import Path

from inprocess import without, without_yarn

from predictions.cli import exits
from predictions.cli.main import cli
from predictions.hbase import lease
from predictions.settings import load_settings
from predictions.storage import Storage


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hold():
    Path("held").touch()
    while not Path("go").exists():
        time.sleep(0.05)


def arm(point):
    """Change a function; in the module that calls it, where others have imported it by its name."""
    module, path, when, *text = point.split(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    @wraps(function)
    def armed(*arguments, **named):
        meant = not text or any(isinstance(given, str) and text[0] in given for given in arguments)
        if meant and when == "enter":
            die()
        if meant and when == "hold":
            hold()
        if when == "progress":
            arguments = (*arguments[:-1], lambda share: die() if share >= 0.5 else None)
        result = function(*arguments, **named)
        if meant and when == "exit":
            die()
        return result

    setattr(owner, name, armed)


def become(point, settings, arguments, folder, environment, processes, yarn, silent_seconds):
    """Be a run, and exit as it does.

    Args:
        point: see above.
        settings: path of the file.
        arguments: of the command line.
        folder: its working directory, for its temporary files, and for what it writes to `stdout` and `stderr`.
        environment: variables.
        processes: whether it starts those that it does in production (see `inprocess`).
        yarn: whether its jobs are YARN's.
        silent_seconds: of a run before it until that is taken for dead.
    """
    os.environ.update(environment)
    (work := Path(folder, "work")).mkdir()
    os.chdir(work)
    tempfile.tempdir = folder
    for number, path in enumerate(("/dev/null", f"{folder}/stdout", f"{folder}/stderr")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    arm(point)
    lease.SILENT_SECONDS = silent_seconds
    known = load_settings(Path(settings))
    storage = None if yarn else Storage(known.hadoop.storage, known.name)
    with without(processes), without_yarn(storage):
        exits.run(cli, "predictions", ["--settings", settings, *arguments])


def main():
    for line in sys.stdin:
        process = os.fork()
        if not process:
            become(**json.loads(line))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
