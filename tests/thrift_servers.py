"""Servers for the tests of connections: HBase's Thrift server in its other modes, and servers that fail on purpose."""

import re
import select
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from hadoop.config import LIB
from predictions.hbase.connection import Connection
from predictions.hbase.server import Server

READY_SECONDS = 120  # three JVMs at once on a busy machine
MODES = {
    "framed": (["-f"], {"transport": "framed"}),
    "compact": (["-c"], {"protocol": "compact"}),
    "framed-compact": (["-f", "-c"], {"transport": "framed", "protocol": "compact"}),
}
_CALL = re.compile(rb"\x80\x01\0\x01\0\0\0.(\w+)", re.DOTALL)
_REPLY = re.compile(rb"\x80\x01\0[\x02\x03]\0\0\0.(\w+)", re.DOTALL)


class Listener:
    """A port that passes each connection to `answer`, in a thread; until it is started, it refuses connections."""

    def __init__(self, answer=lambda _client: None):
        self._answer = answer
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._clients = []
        self.port = self._socket.getsockname()[1]
        self.accepted = []  # the monotonic times of the connections

    def start(self):
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exception):
        for open_socket in (self._socket, *self._clients):
            with suppress(OSError):  # it may be closed already
                open_socket.shutdown(socket.SHUT_RDWR)  # ends an accept or a recv in another thread; close does not
            open_socket.close()

    def _accept(self):
        with suppress(OSError):  # accept fails once the socket is closed
            while True:
                client, _address = self._socket.accept()
                self.accepted.append(time.monotonic())
                self._clients.append(client)
                threading.Thread(target=self._run, args=(client,), daemon=True).start()

    def _run(self, client):
        with suppress(OSError, ValueError), client:  # an end was closed: select raises ValueError then
            self._answer(client)


class Relay(Listener):
    """Stand in front of a Thrift server (buffered, binary), note the calls, and let `reply` change the replies.

    `reply` gets the call's name and the reply, and returns the bytes to send. If these are fewer than it got, the
    connection is closed after them.
    """

    def __init__(self, server, tls=None):
        super().__init__(self._relay)
        self._server = (server.host, server.port)
        self._tls = tls
        self.calls = []
        self.reply = lambda _name, data: data

    def _relay(self, client):
        if self._tls:
            client = self._tls.wrap_socket(client, server_side=True)
        with client, socket.create_connection(self._server) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    # More than a TLS record: no data is left in a buffer that select does not see.
                    data = source.recv(1 << 16)
                    if source is client and (call := _CALL.match(data)):
                        self.calls.append(call[1].decode())
                    reply = _REPLY.match(data) if source is server else None
                    sent = self.reply(reply[1].decode(), data) if reply else data
                    (server if source is client else client).sendall(sent)
                    if not data or len(sent) < len(data):
                        return


@contextmanager
def thrift_servers(config, folder):
    """Start a Thrift server of the cluster in each mode; end each by its process ID."""
    # Its web server would take the port of the cluster's Thrift server. The property has no effect when given by -D.
    no_web = "<property><name>hbase.thrift.info.port</name><value>-1</value></property></configuration>"
    site = (config.conf / "hbase-site.xml").read_text()
    (folder / "hbase-site.xml").write_text(site.replace("</configuration>", no_web))
    java = ["java", f"@{config.java_options_file}", "-cp", f"{folder}:{config.conf}:{LIB}/*", "-Xmx128m"]
    with ExitStack() as stack:
        servers = {}
        for name, (options, mode) in MODES.items():
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            main = ["org.apache.hadoop.hbase.thrift.ThriftServer", "start", "-b", "127.0.0.1", "-p", str(port)]
            log = stack.enter_context(open(folder / f"{name}.log", "wb"))
            command = [*java, "-XX:TieredStopAtLevel=1", *main, *options]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            servers[name] = Server("127.0.0.1", port, **mode)
        for server in servers.values():
            with Connection(replace(server, timeout=READY_SECONDS)) as connection:
                connection.tables()  # the first request takes a second or two
        yield servers
