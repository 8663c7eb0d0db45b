"""The errors that end a command, each with an exit code; a message says in one line what, where and what to do."""

UPLOAD_FAILED = "hadoop fs -put failed: "  # a task writes this before HDFS's own message, which may contain the cause


class PredictionsError(Exception):
    """Base of all expected errors; `exit_code` is the exit code of the command."""

    exit_code = 6


class InputError(PredictionsError):
    """Wrong usage, settings or input: the stage has no result."""

    exit_code = 2


class RefusedError(PredictionsError):
    """The result must not be used, or the request was refused: too many failures, a failed gate, another active run."""

    exit_code = 3


class ServiceError(PredictionsError):
    """A service cannot be reached, or does not answer in time."""

    exit_code = 4


class SnapshotLostError(ServiceError):
    """The database dropped the snapshot before all of it was read; the export can take another one."""


class VerificationError(PredictionsError):
    """The data read back differ from the data written."""

    exit_code = 5


class InternalError(PredictionsError):
    """A job failed, or a program of this project or of the engine did."""

    exit_code = 6
