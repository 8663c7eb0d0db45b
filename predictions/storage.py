"""Store the files of each release, on HDFS (by WebHDFS) or on a local disk.

    STORAGE/NAME/RELEASE/{export,model,scored,hfiles}/...   and   manifest.json

Each folder is written under a temporary name and renamed once it is complete, so a reader sees all of it or nothing.
"""

import errno
import getpass
import gzip
import io
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, Any, BinaryIO
from urllib.parse import SplitResult, urlsplit

from predictions.diagnosis import diagnose
from predictions.errors import InputError, InternalError, ServiceError
from predictions.formats import document
from predictions.formats.manifest import MANIFEST, MODEL_MANIFEST, Manifest, ModelManifest, ReleaseModels, Scored
from predictions.formats.names import PACKED, is_release_id, new_release_id, part_name
from predictions.formats.record_line import read_blocks, unpacked

HFILES = "hfiles"
WEB_PORT = 9870  # the NameNode's default port
WRITE_BLOCK_BYTES = 32 << 20
READ_BLOCK_BYTES = 8 << 20
STREAM_BYTES = 1 << 20


class Storage:
    """The releases of one name.

    Args:
        url: `webhdfs://[USER@]HOST:PORT/PATH`, or the path of a local folder.
        name: name of the predictions.
    """

    def __init__(self, url: str, name: str) -> None:
        import fsspec  # like requests, imported on use: lookups need neither

        self.is_hdfs = "://" in url
        self.fs: Any
        if self.is_hdfs:
            parts = _split_url(url)
            self.address = f"{parts.hostname}:{parts.port or WEB_PORT}"
            self.user = parts.username or os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
            self.fs = fsspec.filesystem("webhdfs", host=parts.hostname, port=parts.port or WEB_PORT, user=self.user)
            self.folder = f"{parts.path.rstrip('/')}/{name}"
        else:
            self.address, self.user = "this machine", getpass.getuser()
            self.fs = fsspec.filesystem("file")
            self.folder = os.path.abspath(f"{url}/{name}")

    def releases(self) -> list[str]:
        """Return the IDs of the exported releases, oldest first; a folder without a manifest does not count."""
        names = filter(is_release_id, self.names(self.folder))
        return sorted(name for name in names if MANIFEST in self.names(f"{self.folder}/{name}"))

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder; an empty list if the folder does not exist.

        fsspec's own `exists` and `glob` do not serve: they return "no" even if the service does not answer.
        """
        with self.reachable():
            try:
                return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False)]
            except FileNotFoundError:
                return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each file in a folder, by name; an empty dictionary without the folder."""
        with self.reachable():
            try:
                files = self.fs.ls(folder, detail=True)
            except FileNotFoundError:
                return {}
        return {file["name"].rstrip("/").rpartition("/")[2]: int(file["size"]) for file in files}

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the content of a file on HDFS, from one request; fsspec's own files make one for each block.

        Call it within `reachable`.
        """
        location = self.fs._call("OPEN", path=path, redirect=False).headers["Location"]
        with self.fs.session.get(self.fs._apply_proxy(location), stream=True) as response:
            response.raise_for_status()
            while data := response.raw.read(STREAM_BYTES):
                yield data

    def checksum(self, path: str) -> str:
        """Return HDFS's checksum of a file, `ALGORITHM:HEX`; empty if HDFS cannot tell it.

        HDFS computes it from the checksums that it stores next to the data, which it does not read. It depends on the
        sizes of blocks and chunks, too. Call it within `reachable`.
        """
        try:
            checksum = self.fs._call("GETFILECHECKSUM", path=path).json()["FileChecksum"]
        # fsspec raises the first two, for example for a block whose DataNode does not answer; the others come from an
        # answer without a checksum, such as HttpFS gives of other file systems.
        except (RuntimeError, ValueError, KeyError, TypeError):
            return ""
        return f"{checksum['algorithm']}:{checksum['bytes']}"

    def size(self, release: str) -> int:
        """Return the size of a release's files in bytes."""
        with self.reachable():
            return sum(int(file["size"]) for file in self.fs.find(f"{self.folder}/{release}", detail=True).values())

    def temporaries(self, release: str, until: datetime) -> list[str]:
        """Return the paths of a release's temporary files and folders that were last changed before a time."""
        with self.reachable():
            files = self.fs.ls(f"{self.folder}/{release}", detail=True)
        paths = [(file["name"].rstrip("/"), _modified(file)) for file in files]
        return sorted(path for path, modified in paths if path.rpartition("/")[2].startswith("_") and modified < until)

    def delete(self, path: str) -> None:
        """Remove a file or a folder, if it exists."""
        with self.reachable(), suppress(FileNotFoundError):
            self.fs.rm(path, recursive=True)

    def may_enter(self, path: str) -> bool:
        """Return whether HDFS permits entering a folder (WebHDFS, "Check access"); False if it does not exist."""
        with self.reachable():
            try:
                self.fs._call("CHECKACCESS", path=path, fsaction="--x")
            except (PermissionError, FileNotFoundError):
                return False
            return True

    def release(self, release: str | None = None) -> "ReleaseFolder":
        """Return the folder of a release, by default the newest.

        Raises:
            InputError: there is no such release.
        """
        releases = self.releases()
        if not releases:
            raise InputError(f"{self.folder}: it has no release; `predictions export` starts one")
        if release and release not in releases:
            raise InputError(f"{self.folder}: it has no release {release}; the newest is {releases[-1]}")
        return ReleaseFolder(self, release or releases[-1])

    def scored(self, release: str | None) -> "ReleaseFolder | None":
        """Return the folder of a release if it has prediction lines, else None."""
        folder = ReleaseFolder(self, release) if release in self.releases() and release else None
        return folder if folder and folder.has("scored") else None

    def new_release(self) -> "ReleaseFolder":
        """Make the folder of a new release."""
        with self.reachable():
            while (release := new_release_id()) in self.names(self.folder):
                time.sleep(0.1)  # a release ID is the time to the second
            self.fs.makedirs(f"{self.folder}/{release}", exist_ok=True)
        return ReleaseFolder(self, release)

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Turn the errors of HDFS, or of the disk, into a PredictionsError with a clear message."""
        import requests

        try:
            yield
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ServiceError(
                f"HDFS does not answer at {self.address} (WebHDFS); start it (hadoop/cluster start) or set "
                "hadoop.storage"
            ) from error
        except requests.HTTPError as error:
            reason = error.response.text if error.response is not None else str(error)  # in JSON
            diagnosis = diagnose([reason])
            raise (
                diagnosis.error(str(diagnosis))
                if diagnosis
                else ServiceError(f"HDFS at {self.address} refused a request: {reason}")
            ) from error
        except RuntimeError as error:  # raised by fsspec for errors of HDFS without a Python class
            if not (diagnosis := diagnose([str(error)])):
                raise
            raise diagnosis.error(str(diagnosis)) from error
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise InputError(f"{self.folder}: {error}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InternalError(f"{self.folder}: {error.strerror}; free some space there") from error


class ReleaseFolder:
    """The folder of one release and the manifest in it."""

    def __init__(self, storage: Storage, release: str) -> None:
        self.storage = storage
        self.release = release
        self.path = f"{storage.folder}/{release}"

    def has(self, name: str) -> bool:
        """Whether the folder has a complete subfolder of this name, such as `export`, `model` or `scored`."""
        return name in self.storage.names(self.path)

    @cached_property
    def manifest(self) -> Manifest:
        """The release's manifest, read once; raises InputError if it has another format."""
        return document.read(Manifest, self.read(MANIFEST), f"{self.path}/{MANIFEST}")

    @cached_property
    def models(self) -> ReleaseModels:
        """The models' manifests (`model.json`), read once; raises InputError if there is no model."""
        self.require("model", "train")
        return ReleaseModels.read(self.read(f"model/{MODEL_MANIFEST}"), f"{self.path}/model/{MODEL_MANIFEST}")

    @property
    def model(self) -> ModelManifest:
        """The manifest of the only label's model, like `models`; raises InputError if there are several labels."""
        return self.models.only

    @property
    def scored(self) -> Scored:
        """The manifest's counts of scored records; raises InputError if the release was not scored and counted."""
        self.require("scored", "score")
        if not self.manifest.scored:
            del self.manifest  # read it again: another run may have scored the release in the meantime
        if not self.manifest.scored:
            raise InputError(
                f"{self.path}/scored: not written by `predictions score`, so it was not counted; remove it"
            )
        return self.manifest.scored

    def require(self, name: str, command: str) -> None:
        """Raise InputError, with the command that makes it, unless a subfolder exists."""
        if not self.has(name):
            raise InputError(f"{self.path}/{name}: does not exist; `predictions {command}` makes it")

    @contextmanager
    def writing(self, name: str, make: bool = True) -> Iterator[str]:
        """Yield a temporary folder to fill; rename it to `name` at the end, or remove it after an error.

        Args:
            name: name of the subfolder.
            make: whether to make the temporary folder; a Hadoop job makes its own.
        """
        fs = self.storage.fs
        temporary = f"{self.path}/_{name}.{uuid.uuid4().hex[:8]}"
        with self.storage.reachable():
            if make:
                fs.makedirs(temporary)
            try:
                yield temporary
                self._rename(temporary, f"{self.path}/{name}")
                self._forget(name)
            except BaseException:
                self.remove(temporary.rpartition("/")[2])
                if not self.storage.names(self.path):
                    fs.rmdir(self.path)
                raise

    @contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """Yield a temporary folder, which is removed at the end."""
        folder = f"_{name}.{uuid.uuid4().hex[:8]}"
        with self.storage.reachable():
            self.storage.fs.makedirs(f"{self.path}/{folder}")
        try:
            yield f"{self.path}/{folder}"
        finally:
            self.remove(folder)

    def take(self, folder: str, name: str) -> None:
        """Move a subfolder that a job wrote next to its output into the release, in place of an old one."""
        self.remove(name)
        if name in self.storage.names(folder):
            with self.storage.reachable():
                self._rename(f"{folder}/{name}", f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file or subfolder of the release, if it exists."""
        self.storage.delete(f"{self.path}/{name}")
        self._forget(name)

    def _forget(self, name: str) -> None:
        """Forget what was read from a subfolder."""
        self.__dict__.pop("models" if name == "model" else name, None)

    def sizes(self, name: str) -> dict[str, int]:
        """Return the size in bytes of each part file (`part-*`) in a subfolder, by file name."""
        sizes = self.storage.sizes(f"{self.path}/{name}")
        return {name: sizes[name] for name in sorted(sizes) if name.startswith("part-")}

    def part(self, name: str, number: int) -> str:
        """Return the path of a part file, packed or not; raise InputError if it is missing, or there are both."""
        names = self.storage.names(f"{self.path}/{name}")
        files = [file for file in (part_name(number), part_name(number) + PACKED) if file in names]
        if len(files) != 1:
            problem = "exists twice, compressed and uncompressed" if files else "does not exist"
            raise InputError(f"{self.path}/{name}/{part_name(number)}: {problem}; remove its folder and score again")
        return f"{self.path}/{name}/{files[0]}"

    def files(self, name: str) -> list[str]:
        """Return the paths of the part files (`part-*`) in a subfolder, in the order of their names."""
        names = self.storage.names(f"{self.path}/{name}")
        return sorted(f"{self.path}/{name}/{file}" for file in names if file.startswith("part-"))

    def read(self, name: str) -> bytes:
        """Return the content of a small file of the release."""
        with self.storage.reachable():
            return self.storage.fs.cat_file(f"{self.path}/{name}")

    def blocks(self, path: str, offset: int = 0, end: bytes = b"\n") -> Iterator[bytes]:
        """Yield the content of a file, unpacked, in blocks of whole lines.

        Args:
            path: path of the file.
            offset: number of bytes to skip at the start, after unpacking.
            end: added to a last line that has no line feed.

        Raises:
            InputError: the file is packed, and its end is missing.
        """
        with self.storage.reachable(), self.storage.fs.open(path, "rb", block_size=READ_BLOCK_BYTES) as file:
            stream = unpacked(file, path)
            try:
                stream.seek(offset)
                yield from read_blocks(stream, end=end)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise InputError(f"{path}: {error}; remove its folder and score again") from error

    def create(self, path: str) -> BinaryIO:
        """Open a new file for writing; the caller closes it."""
        return self.storage.fs.open(path, "wb", block_size=WRITE_BLOCK_BYTES)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self.put(MANIFEST, io.BytesIO(document.to_file(manifest.done)))
        self.manifest = manifest

    def put(self, name: str, source: IO[bytes]) -> None:
        """Copy a stream to a file of the release; readers see either the complete old file or the complete new one."""
        folder, _slash, file = f"{self.path}/{name}".rpartition("/")
        temporary = f"{self.path}/_{file}.{uuid.uuid4().hex[:8]}"
        with self.storage.reachable():
            self.storage.fs.makedirs(folder, exist_ok=True)
            try:
                with self.create(temporary) as target:
                    shutil.copyfileobj(source, target, READ_BLOCK_BYTES)
                self._rename(temporary, f"{folder}/{file}", overwrite=True)
            except BaseException:
                with suppress(OSError, RuntimeError):  # the first error is the one to report
                    self.storage.fs.rm(temporary)
                raise

    def _rename(self, source: str, target: str, overwrite: bool = False) -> None:
        if self.storage.is_hdfs:
            # HDFS answers a failed rename with "false", which fsspec's `mv` ignores. With `renameoptions`, it answers
            # with an error (WebHDFS, "Rename a File/Directory").
            options = "OVERWRITE" if overwrite else "NONE"
            self.storage.fs._call("RENAME", method="put", path=source, destination=target, renameoptions=options)
        else:
            os.replace(source, target)


def _modified(file: dict[str, Any]) -> datetime:
    """Return the time of the last change of a file on HDFS or on the local disk."""
    seconds = file["modificationTime"] / 1000 if "modificationTime" in file else file["mtime"]
    return datetime.fromtimestamp(seconds, UTC)


def _split_url(url: str) -> SplitResult:
    parts = urlsplit(url)
    try:
        valid = parts.scheme == "webhdfs" and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:  # the port is not a valid number
        valid = False
    if not valid:
        raise InputError(f"hadoop.storage: {url}: must be webhdfs://HOST:PORT/PATH, or the path of a folder")
    return parts
