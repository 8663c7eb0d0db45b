"""Files of a task into its output folder on HDFS, which the output committer promotes with that attempt alone.

By WebHDFS, without starting a JVM; by `hadoop fs`, which takes seconds, where the cluster wants a ticket for it, has
several NameNodes, or does not answer there.
"""

import getpass
import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from predictions.errors import UPLOAD_FAILED, InternalError
from predictions.task import environment as task

BUFFER_BYTES = 1 << 20
TELL_BYTES = 64 * BUFFER_BYTES
TIMEOUT = 60  # seconds without a sign of life
ANY_HOST = "0.0.0.0"  # noqa: S104, what the NameNode listens on is not where it is

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
    names = [
        os.path.relpath(os.path.join(top, file), folder) for top, _folders, files in os.walk(folder) for file in files
    ]
    place = urlsplit(target)
    try:
        address = web_address(place.hostname)
        for name in names:
            put(os.path.join(folder, name), address, f"{place.path}/{os.path.basename(folder)}/{name}")
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        print(f"WebHDFS does not take this task's files ({error}): they go by `hadoop fs`", file=sys.stderr)
        _put_by_hadoop(folder, target)


def user() -> str:
    """Return who runs the job."""
    return os.environ.get(_USER) or getpass.getuser()


def output_host() -> str | None:
    """Return the NameNode of the task's output, as its URL has it."""
    return urlsplit(os.environ[_TARGET]).hostname


def web_address(name_node: str | None) -> str:
    """Return where WebHDFS is, as the job's configuration has it; ValueError where only Hadoop's own client may ask."""
    if os.environ.get(_AUTHENTICATION, "simple") != "simple":
        raise ValueError("it wants a ticket")
    host, _colon, port = os.environ[_WEB_ADDRESS].rpartition(":")
    return f"{name_node if host == ANY_HOST else host}:{port}"


def put(path: str, address: str, target: str) -> None:
    """Write a file to HDFS (WebHDFS, "Create and Write to a File").

    Args:
        path: of the file.
        address: of the NameNode's web server.
        target: the file's path on HDFS; what is there is replaced.

    Raises:
        OSError, http.client.HTTPException, ValueError, KeyError: it could not be had, or does not take the file.
    """
    query = urlencode({"op": "CREATE", "overwrite": "true", "noredirect": "true", "user.name": user()})
    told = _request(address, f"/webhdfs/v1{quote(target)}?{query}", HTTPStatus.OK)
    place = urlsplit(json.loads(told)["Location"])
    with open(path, "rb") as file:
        _request(place.netloc, f"{place.path}?{place.query}", HTTPStatus.CREATED, file)


def _request(address: str, path: str, expected: HTTPStatus, body: BinaryIO | None = None) -> bytes:
    size = os.fstat(body.fileno()).st_size if body else 0
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    try:
        connection.request("PUT", path, _told(body, size) if body else None, headers)
        response = connection.getresponse()
        told = response.read()
    finally:
        connection.close()
    if response.status != expected:
        raise ValueError(f"{address} answers {response.status}: {told[:500]!r}")
    return told


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
