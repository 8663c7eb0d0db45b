"""Run the service: listen, require a token outside loopback, and stop without losing requests."""

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

logger = logging.getLogger(__name__)

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MIN_TOKEN = 16  # characters


def serve(settings: Settings, client: Client, host: str, port: int) -> None:
    """Answer HTTP requests until SIGTERM or SIGINT; then finish the open ones, and return.

    Args:
        settings: the settings, for HBase and the name of the predictions.
        client: the client that looks records up.
        host: name or address to listen on; outside loopback, a token is required.
        port: port to listen on; 0 for a free one.

    Raises:
        InputError: the address cannot be used, or the token is missing or too weak.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN},}}", token):
        raise InputError(f"{TOKEN_VARIABLE}: must have at least {MIN_TOKEN} characters, all ASCII, without spaces")
    with _listen(host, port) as listening:
        address, bound_port = listening.getsockname()[:2]
        if not token and not ipaddress.ip_address(address).is_loopback:
            raise InputError(
                f"{host} is not a loopback address: set {TOKEN_VARIABLE} to a secret, which clients must send"
            )
        shown = f"[{address}]" if ":" in address else address
        config = uvicorn.Config(
            make_app(settings, client, token, {*LOOPBACK_NAMES, host.lower(), shown}),
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.hbase.timeout + settings.database.timeout),
        )
        audience = ", for clients with the token" if token else ""
        logger.info("serving on http://%s:%s%s; Ctrl-C stops it", shown, bound_port, audience)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
            uvicorn.Server(config).run(sockets=[listening])
    logger.info("stopped")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_rest, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family)
        # Connections inherit this option. Without it, the body of a response waits 40 ms for the client to acknowledge
        # the head. asyncio sets it only for sockets that name their protocol.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, UnicodeError) as error:  # UnicodeError: not a possible host name
        reason = str(getattr(error, "strerror", error)).partition(" (")[0]  # Python adds the address
        raise InputError(f"{host}:{port}: {reason}; choose another with --host and --port") from error
