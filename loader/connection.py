"""A HappyBase connection for one task: opened with a timeout, closed at the first error."""

from collections.abc import Iterator
from contextlib import contextmanager

import happybase
from thriftpy2.thrift import TException

from predictions.errors import ServiceError

TIMEOUT_MS = 30_000  # HappyBase waits for ever by default


@contextmanager
def connect(address: str) -> Iterator[happybase.Connection]:
    """Open a connection to HBase's Thrift server for the length of a context.

    It is for one thread, and is closed whatever happens within: thriftpy2 does not match a reply to its request, so a
    connection that is used again after a failed call answers with an earlier caller's rows (Thriftpy/thriftpy2#130).

    Args:
        address: `HOST:PORT`.

    Raises:
        PredictionsError: raised within the context, as it is.
        ServiceError: the server cannot be reached, does not answer in time, or HBase reports an error.
    """
    host, _colon, port = address.rpartition(":")
    connection = None
    try:
        connection = happybase.Connection(host, int(port), timeout=TIMEOUT_MS)
        yield connection
    except (OSError, TException) as error:
        reason = getattr(error, "message", None) or str(error) or type(error).__name__
        if isinstance(reason, bytes):
            reason = reason.decode(errors="replace")
        raise ServiceError(
            f"HBase's Thrift server at {address}: {reason.splitlines()[0]}; is it running (hadoop/cluster status), and "
            "is hbase.thrift right?"
        ) from error
    finally:
        if connection is not None:
            connection.close()
