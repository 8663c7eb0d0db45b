"""Run commands and kill them with kill -9, or hold them, at a given point of their code.

    python kill_at.py

Each line on stdin is a run, in JSON (see `become`). For each run, print its process ID, and its exit code once it has
ended. A run is a fork of this process, which has already done the imports that take seconds, and has neither threads
nor connections.

A point is MODULE:FUNCTION:WHEN[:TEXT]. The run is killed when the function is called (`enter`) or has done its work
(`exit`); with TEXT, only in a call with an argument that contains it. With `progress`, it is killed when the function
reports, through its last argument, that half of the work is done. With `hold`, it waits at the call until a file `go`
exists.
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
    """Patch the function of a point. The point names the module that calls it if that imports it by name."""
    module, path, when, *text = point.split(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    @wraps(function)
    def armed(*arguments, **named):
        matches = not text or any(isinstance(argument, str) and text[0] in argument for argument in arguments)
        if matches and when == "enter":
            die()
        if matches and when == "hold":
            hold()
        if when == "progress":
            arguments = (*arguments[:-1], lambda share: die() if share >= 0.5 else None)
        result = function(*arguments, **named)
        if matches and when == "exit":
            die()
        return result

    setattr(owner, name, armed)


def become(point, settings, arguments, folder, environment, processes, yarn, silent_seconds):
    """Become the run, and exit with its exit code.

    Args:
        point: where to kill or hold it, see above.
        settings: path of the settings file.
        arguments: of the command line.
        folder: for its working directory, temporary files, and the files `stdout` and `stderr` with its output.
        environment: variables to set.
        processes: whether it starts the processes that it starts in production (see `inprocess`).
        yarn: whether its jobs run on YARN.
        silent_seconds: how long the lease of another run must be silent until that run counts as dead.
    """
    os.environ.update(environment)
    (work := Path(folder, "work")).mkdir()
    os.chdir(work)
    tempfile.tempdir = folder
    for number, path in enumerate(("/dev/null", f"{folder}/stdout", f"{folder}/stderr")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    arm(point)
    lease.SILENT_SECONDS = silent_seconds
    loaded = load_settings(Path(settings))
    storage = None if yarn else Storage(loaded.hadoop.storage, loaded.name)
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
