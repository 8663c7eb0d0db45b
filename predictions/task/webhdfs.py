"""Copy files between a task and HDFS by WebHDFS, which needs no JVM.

A task's files go into the output folder of its attempt, so the output committer promotes those of the committed attempt
only. If the cluster admits only Hadoop's own client (it requires Kerberos tickets or has several NameNodes), or WebHDFS
does not answer, they are uploaded by `hadoop fs`, which takes seconds.

An HFile is read back once. What HDFS then returns as its own checksum goes into the file's facts, so that the load need
not read the file (loader/proof.py).
"""

import getpass
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from predictions.errors import UPLOAD_FAILED, InternalError
from predictions.formats.hfile.region_file import RegionFile
from predictions.formats.record_line import read_blocks, unpacked
from predictions.task import environment as task

BUFFER_BYTES = 1 << 20
STATUS_BYTES = 64 * BUFFER_BYTES  # between two status reports
TIMEOUT = 60  # seconds without a sign of life
ANY_HOST = "0.0.0.0"  # noqa: S104, the NameNode listens on every address; this is not one to connect to

# What a request may raise: no answer, an unexpected answer, a cluster that requires tickets, a damaged file.
FAILURES = (OSError, EOFError, zlib.error, http.client.HTTPException, ValueError, KeyError)

_TARGET = "mapreduce_task_output_dir"
_WEB_ADDRESS, _AUTHENTICATION, _USER = (
    "dfs_namenode_http_address",
    "hadoop_security_authentication",
    "mapreduce_job_user_name",
)


def upload(folder: str, hfile: RegionFile) -> None:
    """Copy a folder with its files into the task's output folder; outside a job, do nothing.

    Args:
        folder: the folder.
        hfile: the region's HFile in it, whose facts get HDFS's checksum if WebHDFS takes the file.

    Raises:
        InternalError: HDFS did not accept a file, or returns another HFile.
    """
    target = os.environ.get(_TARGET)
    if not target:
        return

    def path_on_hdfs(path: str) -> str:
        return f"{urlsplit(target).path}/{os.path.relpath(path, os.path.dirname(folder))}"

    try:
        if hfile.facts.rows:
            _put(hfile.path, path_on_hdfs(hfile.path))
            hfile.set_hdfs_checksum(_read_back(path_on_hdfs(hfile.path), hfile.facts.sha256))
        for top, _folders, names in os.walk(folder):
            for path in (os.path.join(top, name) for name in names):
                if path != hfile.path:
                    _put(path, path_on_hdfs(path))
    except FAILURES as error:
        print(f"cannot upload this task's files by WebHDFS ({error}); using `hadoop fs`", file=sys.stderr)
        hfile.set_hdfs_checksum("")  # of a file that is now replaced
        _put_by_hadoop(folder, target)


def blocks(path: str) -> Iterator[bytes]:
    """Yield a file of lines, unpacked, in blocks of whole lines; raise one of `FAILURES` if it cannot be read.

    Args:
        path: of the file, on the file system of the task's output.
    """
    with _request("GET", path, {"op": "OPEN"}, HTTPStatus.OK) as response:
        yield from read_blocks(unpacked(response, path))


def _put(path: str, target: str) -> None:
    """Copy a file to HDFS, replacing an older one."""
    query = {"op": "CREATE", "overwrite": "true"}
    with open(path, "rb") as file, _request("PUT", target, query, HTTPStatus.CREATED, file):
        pass


def _read_back(path: str, sha256: str) -> str:
    """Read a file that was uploaded, and return HDFS's own checksum of it, as `Storage.checksum` does.

    Raises:
        InternalError: its SHA-256 is another one.
    """
    digest = hashlib.sha256()
    with _request("GET", path, {"op": "OPEN"}, HTTPStatus.OK) as response:
        for data in _reporting(response, "read back"):
            digest.update(data)
    if digest.hexdigest() != sha256:
        raise InternalError(f"{path}: HDFS does not return the file that was uploaded")
    with _request("GET", path, {"op": "GETFILECHECKSUM"}, HTTPStatus.OK) as response:
        checksum = json.load(response)["FileChecksum"]
    return f"{checksum['algorithm']}:{checksum['bytes']}"


@contextmanager
def _request(
    method: str, path: str, query: dict[str, str], expected: HTTPStatus, file: BinaryIO | None = None
) -> Iterator[Any]:
    """Ask the NameNode for the DataNode that reads or writes a file's data, and send the request there.

    See "Create and Write to a File" and "Open and Read a File" in the documentation of WebHDFS.

    Args:
        method: of HTTP.
        path: of the file on HDFS.
        query: the operation and its options.
        expected: the status of the DataNode's response.
        file: the data to write, if any.
    """
    query = query | {"noredirect": "true", "user.name": os.environ.get(_USER) or getpass.getuser()}
    with _answer(method, _name_node(), f"/webhdfs/v1{quote(path)}?{urlencode(query)}", HTTPStatus.OK) as response:
        location = urlsplit(json.load(response)["Location"])
    with _answer(method, location.netloc, f"{location.path}?{location.query}", expected, file) as response:
        yield response


class _Response(http.client.HTTPResponse):
    """A response that ends early is an error; `http.client` takes the end of the connection for that of the data."""

    def read(self, amt: int | None = None) -> bytes:
        data = super().read(amt)
        if self.length and (amt is None or len(data) < amt):
            raise http.client.IncompleteRead(data, self.length)
        return data


@contextmanager
def _answer(method: str, address: str, path: str, expected: HTTPStatus, file: BinaryIO | None = None) -> Iterator[Any]:
    size = os.fstat(file.fileno()).st_size if file else 0
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"} if method == "PUT" else {}
    with closing(http.client.HTTPConnection(address, timeout=TIMEOUT)) as connection:
        connection.response_class = _Response
        connection.request(method, path, _reporting(file, "uploaded") if file else None, headers)
        response = connection.getresponse()
        if response.status != expected:
            raise ValueError(f"{address} answered {response.status}: {response.read(500)!r}")
        yield response


def _name_node() -> str:
    """Return WebHDFS's HOST:PORT from the job's properties; raise ValueError if the cluster requires tickets."""
    if os.environ.get(_AUTHENTICATION, "simple") != "simple":
        raise ValueError("the cluster requires a Kerberos ticket")
    host, _colon, port = os.environ[_WEB_ADDRESS].rpartition(":")
    return f"{urlsplit(os.environ[_TARGET]).hostname if host == ANY_HOST else host}:{port}"


def _reporting(stream: BinaryIO, what: str) -> Iterator[bytes]:
    """Yield a stream's bytes, and report the progress to Hadoop, which kills a task that is silent for too long."""
    size = 0
    while data := stream.read(BUFFER_BYTES):
        if size % STATUS_BYTES == 0:
            task.status(f"{what} {size:,} bytes")
        yield data
        size += len(data)


def _put_by_hadoop(folder: str, target: str) -> None:
    homes = [os.environ.get(name, "") for name in ("HADOOP_HOME", "HADOOP_COMMON_HOME")]
    hadoop = shutil.which("hadoop") or next(filter(None, (shutil.which(f"{home}/bin/hadoop") for home in homes)), None)
    if not hadoop:
        raise InternalError("no `hadoop` command on this node either: neither on the PATH nor below HADOOP_HOME")
    process = subprocess.Popen([hadoop, "fs", "-put", "-f", folder, target], stderr=subprocess.PIPE, text=True)
    stderr = None
    while stderr is None:
        try:
            _stdout, stderr = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            task.status("uploading by `hadoop fs`")
    if process.returncode:
        raise InternalError(f"{UPLOAD_FAILED}{(stderr.strip().splitlines() or ['no message'])[-1]}")
