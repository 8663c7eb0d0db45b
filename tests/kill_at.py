"""Run the command line, and kill -9 it at a point of its own code.

    python kill_at.py MODULE:FUNCTION:enter|exit[:TEXT] COMMAND...

The process ends when the function is called, or has done its work; with a text, in the call in which an argument has it.
`progress` instead of enter or exit: when what the function was given as `progress` is told that half is done.
"""

import importlib
import os
import signal
import sys
from functools import wraps


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point):
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
        if when == "progress":
            arguments = (*arguments[:-1], lambda share: die() if share >= 0.5 else None)
        result = function(*arguments, **named)
        if meant and when == "exit":
            die()
        return result

    setattr(owner, name, armed)


if __name__ == "__main__":
    arm(sys.argv[1])
    from predictions.cli import main

    sys.argv = ["predictions", *sys.argv[2:]]
    main()
