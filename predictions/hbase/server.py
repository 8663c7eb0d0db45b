"""The address of HBase's Thrift server, its protocol, and the time limit of a request."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Server:
    """A Thrift server; all values are plain, since a job's tasks get them as JSON.

    Args:
        host: name or address.
        port: port.
        transport: `buffered`, or `framed` for a server started by `hbase thrift start -f`.
        protocol: `binary`, or `compact` for a server started by `hbase thrift start -c`.
        tls: whether to encrypt and to check the server's certificate. This needs a TLS proxy in front of the server:
            HBase's own Thrift server speaks TLS only over HTTP (`hbase.thrift.ssl.enabled`), which is not supported.
        ca: path of the trusted certificates, PEM; by default the system's.
        timeout: seconds that a request may take, with all its repetitions.
        timeout_setting: the name of the setting for `timeout`, for messages.
    """

    host: str
    port: int
    transport: str = "buffered"
    protocol: str = "binary"
    tls: bool = False
    ca: str | None = None
    timeout: float = 10.0
    timeout_setting: str = "hbase.timeout"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"
