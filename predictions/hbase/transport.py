"""Sockets that keep a deadline, and a Thrift client that accepts only the reply to its own request.

thriftpy2 numbers every request 0 and accepts any reply (Thriftpy/thriftpy2#130, python-happybase/happybase#60): after
an abandoned request, the next one gets the reply to it, another record's row. Here each request has its own number,
its reply must have the same one, and any exception closes the transport.
"""

import os
import socket
import ssl
import time
from typing import Any

import happybase
from thriftpy2.protocol.compact import TCompactProtocol
from thriftpy2.protocol.cybin import TCyBinaryProtocol
from thriftpy2.protocol.exc import TProtocolException
from thriftpy2.thrift import TClient, TException
from thriftpy2.transport import TSocket, TSSLSocket, TTransportException
from thriftpy2.transport.buffered import TCyBufferedTransport
from thriftpy2.transport.framed import TCyFramedTransport

from predictions.errors import InputError
from predictions.hbase.rows import Service
from predictions.hbase.server import Server

BUFFER_BYTES = 64 << 10  # read or written at once; with thriftpy2's 4 KB, the reply to a lookup came in many pieces
_NUMBERS = 1 << 31  # a request's number is a signed 32-bit integer


class _DeadlineSocket(TSocket):
    """A socket with a deadline: with a timeout for each read, a server that trickles bytes would keep it waiting."""

    deadline = float("inf")
    sock: socket.socket | ssl.SSLSocket | None
    _process = 0

    def open(self) -> None:
        self._process = os.getpid()
        self.connect_timeout = self.socket_timeout = self._left()
        super().open()

    def read(self, size: int) -> bytes:
        self._socket().settimeout(self._left())
        return super().read(size)

    def write(self, data: bytes) -> None:
        self._socket().settimeout(self._left())
        super().write(data)

    def close(self) -> None:
        if self.sock and self._process != os.getpid():
            self.sock.close()  # a forked process must not shut down its parent's connection
            self.sock = None
        super().close()

    def _socket(self) -> socket.socket:
        if self.sock is None:
            raise TTransportException(TTransportException.NOT_OPEN, "the connection is closed")
        return self.sock

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left


class _DeadlineTlsSocket(_DeadlineSocket, TSSLSocket):
    """A socket with a deadline, encrypted."""


class _Numbered:
    """A protocol that accepts a reply only if it has the number of the request."""

    expected = 0  # the number of the last request

    def read_message_begin(self) -> Any:
        name, kind, number = super().read_message_begin()  # type: ignore[misc]
        if number != self.expected:
            raise TProtocolException(message=f"reply {number} ({name}) arrived for request {self.expected}")
        return name, kind, number


class _Binary(_Numbered, TCyBinaryProtocol):
    pass


class _Compact(_Numbered, TCompactProtocol):
    pass


class _Client(TClient):
    """A client that numbers its requests and closes its transport at any exception, including an interrupt."""

    _seqid: int

    def _req(self, _api: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._req(_api, *args, **kwargs)
        except BaseException:
            self.close()
            raise

    def _send(self, _api: str, **kwargs: Any) -> None:
        self._seqid = self._iprot.expected = (self._seqid + 1) % _NUMBERS
        super()._send(_api, **kwargs)

    def _recv(self, _api: str) -> Any:
        try:
            return super()._recv(_api)
        except (OSError, TException):
            raise
        except Exception as error:  # thriftpy2 raises any exception on bytes that are not a reply
            raise TProtocolException(TProtocolException.INVALID_DATA, f"the reply is not Thrift: {error}") from error

    def begin(self, call: str, arguments: dict[str, Any]) -> None:
        """Send a request; `end` must receive its reply before the next request."""
        try:
            self._send(call, **arguments)
        except BaseException:
            self.close()
            raise

    def end(self, call: str) -> Any:
        """Wait for the reply to the request that `begin` sent, and return its result."""
        try:
            return self._recv(call)
        except BaseException:
            self.close()
            raise


def _context(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{ca}: {error.strerror or error}; hbase.ca must be a PEM file of certificates") from error


_TRANSPORTS = {"buffered": TCyBufferedTransport, "framed": TCyFramedTransport}
_PROTOCOLS = {"binary": _Binary, "compact": _Compact}


class Channel:
    """An open HappyBase connection over a socket with a deadline."""

    def __init__(self, server: Server, deadline: float) -> None:
        if server.tls:
            self._socket = _DeadlineTlsSocket(server.host, server.port, ssl_context=_context(server.ca))
        else:
            self._socket = _DeadlineSocket(server.host, server.port)
        self.until(deadline)
        self.happybase = happybase.Connection(server.host, server.port, autoconnect=False)
        # HappyBase's own transport and client are slower (pure Python), without deadlines and numbers.
        self.happybase.transport = _TRANSPORTS[server.transport](self._socket, BUFFER_BYTES)
        self.client = _Client(Service, _PROTOCOLS[server.protocol](self.happybase.transport, decode_response=False))
        self.happybase.client = self.client
        self.happybase.open()

    @property
    def is_open(self) -> bool:
        return self._socket.is_open()

    def until(self, deadline: float) -> None:
        """Set the deadline of what follows, by the monotonic clock."""
        self._socket.deadline = deadline

    def close(self) -> None:
        self.happybase.close()
