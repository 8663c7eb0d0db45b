"""Files of HDFS into a task, by WebHDFS (see `predictions.task.upload`)."""

import gzip
import http.client
import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from predictions.formats.names import PACKED
from predictions.formats.record_line import read_blocks
from predictions.task.upload import TIMEOUT, output_host, user, web_address

# What `blocks` may raise: nobody is there, or who is there answers otherwise, or wants a ticket; and a damaged file.
FAILURES = (OSError, EOFError, zlib.error, http.client.HTTPException, ValueError, KeyError)


def blocks(path: str) -> Iterator[bytes]:
    """Yield a file of lines, unpacked, in blocks of whole lines (WebHDFS, "Open and Read a File").

    Args:
        path: of the file, on the file system of the task's output.
    """
    query = urlencode({"op": "OPEN", "noredirect": "true", "user.name": user()})
    address = web_address(output_host())
    with closing(http.client.HTTPConnection(address, timeout=TIMEOUT)) as name_node:
        told = _get(name_node, f"/webhdfs/v1{quote(path)}?{query}").read()
    place = urlsplit(json.loads(told)["Location"])
    with closing(http.client.HTTPConnection(place.netloc, timeout=TIMEOUT)) as data_node:
        response = _get(data_node, f"{place.path}?{place.query}")
        stream: Any = gzip.GzipFile(fileobj=response) if path.endswith(PACKED) else response
        yield from read_blocks(stream)


def _get(connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
    connection.request("GET", path)
    response = connection.getresponse()
    if response.status != HTTPStatus.OK:
        raise ValueError(f"{connection.host} answers {response.status}: {response.read(500)!r}")
    return response
