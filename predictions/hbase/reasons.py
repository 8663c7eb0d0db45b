"""What went wrong with a request, by what HBase or the wire says: whether it may pass, and the reason in a line."""

import re
import ssl
from typing import Any

from Hbase_thrift import IllegalArgument
from Hbase_thrift import IOError as HbaseIOError
from thriftpy2.thrift import TApplicationException, TException
from thriftpy2.transport import TTransportException

# The names of exceptions that HBase will raise again, however often it is asked. It hands them on as text; its flag
# `canRetry` is true even for some of these (RetriesExhaustedWithDetailsException about a column family that is not
# there), and DoNotRetryIOException has children that pass (NoServerForRegionException).
_FOR_GOOD = re.compile(
    r"\b(DoNotRetryIOException|IllegalArgumentException|NoSuchColumnFamilyException|FailedSanityCheckException"
    r"|ConstraintException|AccessDeniedException|TableNotFoundException|InvalidFamilyOperationException)\b"
    # A put into a table that is not there: the table's name stands where the exception's would.
    r"|Failed \d+ actions?: (?!\S*(?:Exception|Error):)\S+: \d+ times?, servers with issues: null"
)
# What it makes of a region that no server has at the moment, because it is split, moved or taken over.
_BETWEEN_SERVERS = "Internal error processing getTableRegions"
_PACKAGE = re.compile(r"\b(?:[a-z][a-z0-9]*\.)+(?=[A-Z])")


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HbaseIOError):
        return not _FOR_GOOD.search(_first_line(error))
    if isinstance(error, TApplicationException):  # a Java exception that the Thrift server did not foresee
        return _first_line(error) == _BETWEEN_SERVERS
    if isinstance(error, IllegalArgument):
        return False
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return False
    return isinstance(error, (OSError, TException))


def reason_of(error: BaseException | None) -> str:
    """Return in a line, without the names of Java's packages, what went wrong."""
    if isinstance(error, TTransportException) and isinstance(error.__context__, OSError):
        error = error.__context__  # thriftpy2 says no more than that it could not connect
    elif isinstance(error, TTransportException) and error.type == TTransportException.END_OF_FILE:
        return "the server closed the connection"
    return _PACKAGE.sub("", _first_line(error))


def _first_line(error: Any) -> str:
    said = getattr(error, "message", None) or str(error) or type(error).__name__
    return (said.decode(errors="replace") if isinstance(said, bytes) else said).splitlines()[0]
