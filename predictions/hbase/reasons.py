"""Judge a failed request by its exception: whether the same request may succeed later, and the reason in one line."""

import re
import ssl
from typing import Any

from Hbase_thrift import IllegalArgument
from Hbase_thrift import IOError as HbaseIOError
from thriftpy2.thrift import TApplicationException, TException
from thriftpy2.transport import TTransportException

# Exceptions that HBase would raise again at every attempt. It sends their names as text; its flag `canRetry` does not
# help, since it is true even for some of these (RetriesExhaustedWithDetailsException about a missing column family),
# and DoNotRetryIOException has subclasses that may pass (NoServerForRegionException).
_PERMANENT = re.compile(
    r"\b(DoNotRetryIOException|IllegalArgumentException|NoSuchColumnFamilyException|FailedSanityCheckException"
    r"|ConstraintException|AccessDeniedException|TableNotFoundException|InvalidFamilyOperationException)\b"
    # A put into a missing table: the name of the table stands in the place of the exception.
    r"|Failed \d+ actions?: (?!\S*(?:Exception|Error):)\S+: \d+ times?, servers with issues: null"
)
# HBase says so while no server has the region, because it is being split, moved or taken over.
_BETWEEN_SERVERS = "Internal error processing getTableRegions"
_PACKAGE = re.compile(r"\b(?:[a-z][a-z0-9]*\.)+(?=[A-Z])")


def may_pass(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, HbaseIOError):
        return not _PERMANENT.search(_first_line(error))
    if isinstance(error, TApplicationException):  # a Java exception that the Thrift server does not handle
        return _first_line(error) == _BETWEEN_SERVERS
    if isinstance(error, IllegalArgument):
        return False
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return False
    return isinstance(error, (OSError, TException))


def reason_of(error: BaseException | None) -> str:
    """Return what went wrong in one line, without the names of Java packages."""
    if isinstance(error, TTransportException) and isinstance(error.__context__, OSError):
        error = error.__context__  # thriftpy2 itself says only that it could not connect
    elif isinstance(error, TTransportException) and error.type == TTransportException.END_OF_FILE:
        return "the server closed the connection"
    return _PACKAGE.sub("", _first_line(error))


def _first_line(error: Any) -> str:
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return (text.decode(errors="replace") if isinstance(text, bytes) else text).splitlines()[0]
