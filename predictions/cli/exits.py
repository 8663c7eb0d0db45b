"""End a command line: an expected error is one line on stderr and an exit code (see `predictions.errors`)."""

import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from predictions.errors import InputError, InternalError, PredictionsError
from predictions.progress import say

DONE, WITH_FAILURES, UNAVAILABLE, INTERRUPTED = 0, 1, 4, 130
MEANINGS = {  # in docs/commands.md, next to the errors' codes, whose meanings are the errors' docstrings
    DONE: "Done. For `get` and `explain`, this includes the answer that a record is missing.",
    WITH_FAILURES: "Done, but some records could not be scored; no more than the gate `max_failed` allows.",
    UNAVAILABLE: "`get`: the record or the prediction of at least one ID is unavailable.",
    INTERRUPTED: "Interrupted from the keyboard or by SIGTERM; a running job is ended on the cluster as well.",
}


def log_to_stderr() -> None:
    """Write the package's log to stderr, as plain lines."""
    logger = logging.getLogger("predictions")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    # The service logs a failed request once; the repetitions of its requests to HBase would be a line each.
    logging.getLogger("predictions.hbase").setLevel(logging.WARNING)


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit.

    Args:
        command: the command; its functions return an exit code, or None for 0.
        name: the program's name, which begins each message.
        arguments: the command line's arguments; by default those of this process.
    """
    # Schedulers end a task with SIGTERM; clean up as after an interrupt from the keyboard.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except PredictionsError as error:
        say(f"{name}: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say(f"{name}: interrupted")
        code = INTERRUPTED
    except ModuleNotFoundError as error:
        say(f"{name}: {error.name} is not installed: pip install 'predictions[batch]'")
        code = InputError.exit_code
    except Exception:
        # A bug of ours: print the traceback, and replace Python's exit code 1, which here means failed records.
        traceback.print_exc()
        code = InternalError.exit_code
    sys.exit(code or DONE)
