"""Files between a task and HDFS, by WebHDFS: no JVM is started for it.

What a task writes goes into its output folder, which the output committer promotes with that attempt alone. Where only
Hadoop's own client may ask (the cluster wants a ticket or has several NameNodes), or nobody answers, it goes by
`hadoop fs`, which takes seconds.
"""

import getpass
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
from predictions.formats.record_line import read_blocks, unpacked
from predictions.task import environment as task

BUFFER_BYTES = 1 << 20
TELL_BYTES = 64 * BUFFER_BYTES
TIMEOUT = 60  # seconds without a sign of life
ANY_HOST = "0.0.0.0"  # noqa: S104, what the NameNode listens on is not where it is

# What a request may raise: nobody is there, or who is there answers otherwise, or wants a ticket; and a damaged file.
FAILURES = (OSError, EOFError, zlib.error, http.client.HTTPException, ValueError, KeyError)

_TARGET = "mapreduce_task_output_dir"
_WEB_ADDRESS, _AUTHENTICATION, _USER = (
    "dfs_namenode_http_address",
    "hadoop_security_authentication",
    "mapreduce_job_user_name",
)


def upload(folder: str) -> None:
    """Copy a folder's files into a folder of the same name in the task's output folder; outside a job it is no more.

    Raises:
        InternalError: HDFS did not take them.
    """
    target = os.environ.get(_TARGET)
    if not target:
        return
    try:
        for top, _folders, names in os.walk(folder):
            for name in names:
                path = os.path.join(top, name)
                _put(path, f"{urlsplit(target).path}/{os.path.relpath(path, os.path.dirname(folder))}")
    except FAILURES as error:
        print(f"WebHDFS does not take this task's files ({error}): they go by `hadoop fs`", file=sys.stderr)
        _put_by_hadoop(folder, target)


def blocks(path: str) -> Iterator[bytes]:
    """Yield a file of lines, unpacked, in blocks of whole lines; one of `FAILURES` where it cannot be had.

    Args:
        path: of the file, on the file system of the task's output.
    """
    with _request("GET", path, {"op": "OPEN"}, HTTPStatus.OK) as response:
        yield from read_blocks(unpacked(response, path))


def _put(path: str, target: str) -> None:
    """Write a file to HDFS, in the place of what is there."""
    query = {"op": "CREATE", "overwrite": "true"}
    with open(path, "rb") as file, _request("PUT", target, query, HTTPStatus.CREATED, file):
        pass


@contextmanager
def _request(
    method: str, path: str, query: dict[str, str], expected: HTTPStatus, file: BinaryIO | None = None
) -> Iterator[Any]:
    """Ask the NameNode who has a file's data, or takes it, and then ask that one.

    It is WebHDFS' "Create and Write to a File" and "Open and Read a File".

    Args:
        method: of HTTP.
        path: of the file on HDFS.
        query: the operation and its options.
        expected: the status of the last answer.
        file: the data, if it is to be written.
    """
    query = query | {"noredirect": "true", "user.name": os.environ.get(_USER) or getpass.getuser()}
    with _answer(method, _name_node(), f"/webhdfs/v1{quote(path)}?{urlencode(query)}", HTTPStatus.OK) as response:
        place = urlsplit(json.load(response)["Location"])
    with _answer(method, place.netloc, f"{place.path}?{place.query}", expected, file) as response:
        yield response


@contextmanager
def _answer(method: str, address: str, path: str, expected: HTTPStatus, file: BinaryIO | None = None) -> Iterator[Any]:
    size = os.fstat(file.fileno()).st_size if file else 0
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"} if method == "PUT" else {}
    with closing(http.client.HTTPConnection(address, timeout=TIMEOUT)) as connection:
        connection.request(method, path, _told(file, size) if file else None, headers)
        response = connection.getresponse()
        if response.status != expected:
            raise ValueError(f"{address} answers {response.status}: {response.read(500)!r}")
        yield response


def _name_node() -> str:
    """Return where WebHDFS is, as the job's configuration has it; ValueError where only Hadoop's own client may ask."""
    if os.environ.get(_AUTHENTICATION, "simple") != "simple":
        raise ValueError("it wants a ticket")
    host, _colon, port = os.environ[_WEB_ADDRESS].rpartition(":")
    return f"{urlsplit(os.environ[_TARGET]).hostname if host == ANY_HOST else host}:{port}"


def _told(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield a file's bytes, and tell Hadoop how far they have come: else it ends a task that is silent."""
    done = 0
    while data := file.read(BUFFER_BYTES):
        if done % TELL_BYTES == 0:
            task.status(f"uploaded {done:,} of {size:,} bytes")
        yield data
        done += len(data)


def _put_by_hadoop(folder: str, target: str) -> None:
    homes = [os.environ.get(name, "") for name in ("HADOOP_HOME", "HADOOP_COMMON_HOME")]
    hadoop = shutil.which("hadoop") or next(filter(None, (shutil.which(f"{home}/bin/hadoop") for home in homes)), None)
    if not hadoop:
        raise InternalError("no `hadoop` on this node either: not on the PATH, nor below HADOOP_HOME")
    putting = subprocess.Popen([hadoop, "fs", "-put", "-f", folder, target], stderr=subprocess.PIPE, text=True)
    said = None
    while said is None:
        try:
            _stdout, said = putting.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            task.status("uploading by `hadoop fs`")
    if putting.returncode:
        raise InternalError(f"{UPLOAD_FAILED}{(said.strip().splitlines() or ['no message'])[-1]}")
