"""The errors that end a command: each says in one line what, where and what to do, and has an exit code."""

UPLOAD_FAILED = "hadoop fs -put failed: "  # a task says so before HDFS's own words, which may hold the cause


class PredictionsError(Exception):
    """Base of every expected error; `exit_code` is what the command line returns."""

    exit_code = 6


class InputError(PredictionsError):
    """Wrong usage, settings or input: nothing was done."""

    exit_code = 2


class RefusedError(PredictionsError):
    """Everything worked, but the result is not fit to go on: too many failures, a gate, another's turn."""

    exit_code = 3


class ServiceError(PredictionsError):
    """A service cannot be reached."""

    exit_code = 4


class SnapshotLostError(ServiceError):
    """The database could not keep the snapshot until all of it was read; another may be had."""


class VerificationError(PredictionsError):
    """What was written is not what was read back."""

    exit_code = 5


class InternalError(PredictionsError):
    """A job failed, or a program of ours or the engine's did."""

    exit_code = 6
