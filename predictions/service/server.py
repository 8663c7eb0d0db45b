"""The service as a process: where it listens, who may ask, and how it stops."""

import ipaddress
import logging
import math
import os
import re
import socket
from contextlib import suppress

import uvicorn

from predictions.errors import InputError
from predictions.lookup.client import Client
from predictions.service.app import make_app
from predictions.settings import TOKEN_VARIABLE, Settings

_log = logging.getLogger(__name__)

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MIN_TOKEN = 16  # characters


def serve(settings: Settings, client: Client, host: str, port: int) -> None:
    """Answer over HTTP until SIGTERM or SIGINT; then finish what was begun, and return.

    Args:
        settings: where HBase is, and the name of the predictions.
        client: what looks records up.
        host: name or address to listen on; any but those of loopback need a token.
        port: to listen on; 0 for a free one.

    Raises:
        InputError: the address cannot be listened on, or needs a token that there is not.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN},}}", token):
        raise InputError(f"{TOKEN_VARIABLE}: it must have {MIN_TOKEN} characters at least, of ASCII without spaces")
    with _listen(host, port) as listening:
        address, bound = listening.getsockname()[:2]
        if not token and not ipaddress.ip_address(address).is_loopback:
            raise InputError(
                f"{host} is not loopback alone: set {TOKEN_VARIABLE} to a secret, which those who ask must send"
            )
        shown = f"[{address}]" if ":" in address else address
        config = uvicorn.Config(
            make_app(settings, client, token, {*LOOPBACK_NAMES, host.lower(), shown}),
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.hbase.timeout + settings.database.timeout),
        )
        those = ", to those with the token" if token else ""
        _log.info("serving on http://%s:%s%s; Ctrl-C stops it", shown, bound, those)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
            uvicorn.Server(config).run(sockets=[listening])
    _log.info("stopped")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_rest, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family)
        # Its connections inherit it. Without it, the body of an answer waits for 40 ms, until the client has
        # acknowledged the head. asyncio sets it only for a socket that names its protocol.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, UnicodeError) as error:  # the latter of what can be no name
        reason = str(getattr(error, "strerror", error)).partition(" (")[0]  # Python adds the address
        raise InputError(f"{host}:{port}: {reason}; choose another with --host and --port") from error
