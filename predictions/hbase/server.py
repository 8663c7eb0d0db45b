"""Where HBase's Thrift server is, how it is spoken to, and how long a request may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Server:
    """A Thrift server, as a connection needs to know it; plain values, to be handed to a job's tasks as JSON.

    Args:
        host: its name or address.
        port: its port.
        transport: `buffered`, or `framed` as `hbase thrift start -f` speaks.
        protocol: `binary`, or `compact` as `hbase thrift start -c` speaks.
        tls: whether to encrypt, and to check the server's certificate. HBase's own Thrift server speaks TLS over HTTP
            alone (`hbase.thrift.ssl.enabled`), which this is not: it is for a TLS proxy before it.
        ca: path of the certificates to trust, PEM; by default the system's.
        timeout: seconds that a request may take with all its repetitions.
        timeout_setting: the name of that setting, for messages.
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
