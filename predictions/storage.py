"""The files between the stages: a folder a release, on HDFS (by WebHDFS) or on a local disk.

    STORAGE/NAME/RELEASE/{export,model,scored,hfiles}/...   and   manifest.json

Each folder is written under a temporary name and renamed when it is whole, so a reader sees all of it or nothing.
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
from predictions.formats.manifest import MANIFEST, MODEL_MANIFEST, Manifest, ModelManifest, Scored
from predictions.formats.names import PACKED, is_release_id, new_release_id, part_name
from predictions.formats.record_line import read_blocks, unpacked

HFILES = "hfiles"
WEB_PORT = 9870  # the NameNode's, where the URL names none
WRITE_BLOCK_BYTES = 32 << 20
READ_BLOCK_BYTES = 8 << 20


class Storage:
    """The releases of one name.

    Args:
        url: `webhdfs://[USER@]HOST:PORT/PATH`, or the path of a local folder.
        name: the predictions' name in the settings.
    """

    def __init__(self, url: str, name: str) -> None:
        import fsspec  # it and requests are here, not above, since lookups do without them

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
        """Return the releases that were exported, oldest first; a folder without a manifest is none."""
        names = filter(is_release_id, self.names(self.folder))
        return sorted(name for name in names if MANIFEST in self.names(f"{self.folder}/{name}"))

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, none where there is no such folder.

        fsspec's own `exists` and `glob` answer "no" where the service did not answer at all.
        """
        with self.reachable():
            try:
                return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False)]
            except FileNotFoundError:
                return []

    def size(self, release: str) -> int:
        """Return the bytes of a release's files."""
        with self.reachable():
            return sum(int(file["size"]) for file in self.fs.find(f"{self.folder}/{release}", detail=True).values())

    def temporaries(self, release: str, until: datetime) -> list[str]:
        """Return the temporary files and folders of a release that nobody has changed since some time."""
        with self.reachable():
            found = self.fs.ls(f"{self.folder}/{release}", detail=True)
        paths = [(file["name"].rstrip("/"), _modified(file)) for file in found]
        return sorted(path for path, time in paths if path.rpartition("/")[2].startswith("_") and time < until)

    def delete(self, path: str) -> None:
        """Remove a file or a folder, if it is there."""
        with self.reachable(), suppress(FileNotFoundError):
            self.fs.rm(path, recursive=True)

    def may_enter(self, path: str) -> bool:
        """Ask HDFS whether a folder may be entered (WebHDFS, "Check access"); no, where it is not there."""
        with self.reachable():
            try:
                self.fs._call("CHECKACCESS", path=path, fsaction="--x")
            except (PermissionError, FileNotFoundError):
                return False
            return True

    def release(self, release: str | None = None) -> "ReleaseFolder":
        """Return a release's folder, the newest one's by default.

        Raises:
            InputError: there is no such release.
        """
        known = self.releases()
        if not known:
            raise InputError(f"{self.folder}: no release there; `predictions export` starts one")
        if release and release not in known:
            raise InputError(f"{self.folder}: no release {release}; the newest is {known[-1]}")
        return ReleaseFolder(self, release or known[-1])

    def scored(self, release: str | None) -> "ReleaseFolder | None":
        """Return a release's folder if its prediction lines are there."""
        folder = ReleaseFolder(self, release) if release in self.releases() and release else None
        return folder if folder and folder.has("scored") else None

    def new_release(self) -> "ReleaseFolder":
        """Make the folder of a release that starts now."""
        with self.reachable():
            while (release := new_release_id()) in self.names(self.folder):
                time.sleep(0.1)  # a release is named by its second
            self.fs.makedirs(f"{self.folder}/{release}", exist_ok=True)
        return ReleaseFolder(self, release)

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Turn a service that does not answer into one clear error."""
        import requests

        try:
            yield
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ServiceError(
                f"HDFS does not answer at {self.address} (WebHDFS); start it (hadoop/cluster start) or set "
                "hadoop.storage"
            ) from error
        except requests.HTTPError as error:
            told = error.response.text if error.response is not None else str(error)  # the reason, in JSON
            known = diagnose([told])
            raise (
                known.error(str(known)) if known else ServiceError(f"HDFS at {self.address} refused: {told}")
            ) from error
        except RuntimeError as error:  # fsspec's for what HDFS says and Python has no class for
            if not (known := diagnose([str(error)])):
                raise
            raise known.error(str(known)) from error
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise InputError(f"{self.folder}: {error}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InternalError(f"{self.folder}: {error.strerror}: free some space there") from error


class ReleaseFolder:
    """The folder of one release and the manifest in it."""

    def __init__(self, storage: Storage, release: str) -> None:
        self.storage = storage
        self.release = release
        self.path = f"{storage.folder}/{release}"

    def has(self, name: str) -> bool:
        """Whether a part of the release (`export`, `model`, `scored`) is there, whole."""
        return name in self.storage.names(self.path)

    @cached_property
    def manifest(self) -> Manifest:
        """The release's manifest, read once; InputError where it is of another format."""
        return document.read(Manifest, self.read(MANIFEST), f"{self.path}/{MANIFEST}")

    @cached_property
    def model(self) -> ModelManifest:
        """What `model.json` says, read once; InputError where there is no model."""
        self.require("model", "train")
        return document.read(ModelManifest, self.read(f"model/{MODEL_MANIFEST}"), f"{self.path}/model/{MODEL_MANIFEST}")

    @property
    def scored(self) -> Scored:
        """What was scored; InputError where that was not, or the lines are there but were not counted."""
        self.require("scored", "score")
        if not self.manifest.scored:
            del self.manifest  # another run may have scored it in the meantime
        if not self.manifest.scored:
            raise InputError(f"{self.path}/scored: not made by `predictions score`, nothing was counted; remove it")
        return self.manifest.scored

    def require(self, name: str, command: str) -> None:
        """Raise InputError, naming the command that makes it, unless a part is there."""
        if not self.has(name):
            raise InputError(f"{self.path}/{name}: not there; `predictions {command}` makes it")

    @contextmanager
    def writing(self, name: str, make: bool = True) -> Iterator[str]:
        """Give a temporary folder to fill; rename it to `name` at the end, remove it on any error.

        Args:
            name: of the part of the release.
            make: whether to make the folder; a Hadoop job makes its own.
        """
        fs = self.storage.fs
        temporary = f"{self.path}/_{name}.{uuid.uuid4().hex[:8]}"
        with self.storage.reachable():
            if make:
                fs.makedirs(temporary)
            try:
                yield temporary
                self._rename(temporary, f"{self.path}/{name}")
                self.__dict__.pop(name, None)  # the cached property of the part, if it has one
            except BaseException:
                self.remove(temporary.rpartition("/")[2])
                if not self.storage.names(self.path):
                    fs.rmdir(self.path)
                raise

    @contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """Give a folder to fill, which is removed at the end."""
        folder = f"_{name}.{uuid.uuid4().hex[:8]}"
        with self.storage.reachable():
            self.storage.fs.makedirs(f"{self.path}/{folder}")
        try:
            yield f"{self.path}/{folder}"
        finally:
            self.remove(folder)

    def take(self, folder: str, name: str) -> None:
        """Make what a job wrote beside its output, into a folder of this name there, a part of the release."""
        self.remove(name)
        if name in self.storage.names(folder):
            with self.storage.reachable():
                self._rename(f"{folder}/{name}", f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Remove a part of the release, if it is there."""
        self.storage.delete(f"{self.path}/{name}")
        self.__dict__.pop(name, None)

    def sizes(self, name: str) -> dict[str, int]:
        """Return the names of a part's files (`part-*`) with their sizes in bytes."""
        with self.storage.reachable():
            found = self.storage.fs.ls(f"{self.path}/{name}", detail=True)
        sizes = {file["name"].rpartition("/")[2]: int(file["size"]) for file in found}
        return {name: sizes[name] for name in sorted(sizes) if name.startswith("part-")}

    def part(self, name: str, number: int) -> str:
        """Return the path of a part file, packed or not; InputError where it is not there, or both are."""
        there = self.storage.names(f"{self.path}/{name}")
        found = [file for file in (part_name(number), part_name(number) + PACKED) if file in there]
        if len(found) != 1:
            problem = "it is there twice" if found else "not there"
            raise InputError(f"{self.path}/{name}/{part_name(number)}: {problem}; score the release again")
        return f"{self.path}/{name}/{found[0]}"

    def files(self, name: str) -> list[str]:
        """Return the paths of a part's files (`part-*`) in order of their names."""
        names = self.storage.names(f"{self.path}/{name}")
        return sorted(f"{self.path}/{name}/{file}" for file in names if file.startswith("part-"))

    def read(self, name: str) -> bytes:
        """Return a small file of the release."""
        with self.storage.reachable():
            return self.storage.fs.cat_file(f"{self.path}/{name}")

    def blocks(self, path: str, offset: int = 0, end: bytes = b"\n") -> Iterator[bytes]:
        """Yield a file, unpacked, in blocks of whole lines; a last line without a line feed is given `end`.

        Args:
            path: of the file.
            offset: bytes to leave out, after unpacking.
            end: of a last line that has none.

        Raises:
            InputError: it is packed, and its end is missing.
        """
        with self.storage.reachable(), self.storage.fs.open(path, "rb", block_size=READ_BLOCK_BYTES) as file:
            stream = unpacked(file, path)
            try:
                stream.seek(offset)
                yield from read_blocks(stream, end=end)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise InputError(f"{path}: {error}; score the release again") from error

    def create(self, path: str) -> BinaryIO:
        """Open a file to write; the caller closes it."""
        return self.storage.fs.open(path, "wb", block_size=WRITE_BLOCK_BYTES)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self.put(MANIFEST, io.BytesIO(document.to_file(manifest.done)))
        self.manifest = manifest

    def put(self, name: str, source: IO[bytes]) -> None:
        """Copy a file to a part of the release, or replace that; readers see the old one or the new one, whole."""
        folder, _slash, file = f"{self.path}/{name}".rpartition("/")
        temporary = f"{self.path}/_{file}.{uuid.uuid4().hex[:8]}"
        with self.storage.reachable():
            self.storage.fs.makedirs(folder, exist_ok=True)
            try:
                with self.create(temporary) as target:
                    shutil.copyfileobj(source, target, READ_BLOCK_BYTES)
                self._rename(temporary, f"{folder}/{file}", overwrite=True)
            except BaseException:
                with suppress(OSError, RuntimeError):  # what failed first is what matters
                    self.storage.fs.rm(temporary)
                raise

    def _rename(self, source: str, target: str, overwrite: bool = False) -> None:
        if self.storage.is_hdfs:
            # fsspec's `mv` does not look at the answer, and HDFS answers a failed rename with "false". With the
            # option, it is an error (WebHDFS, "Rename a File/Directory").
            options = "OVERWRITE" if overwrite else "NONE"
            self.storage.fs._call("RENAME", method="put", path=source, destination=target, renameoptions=options)
        else:
            os.replace(source, target)


def _modified(file: dict[str, Any]) -> datetime:
    """Return when a file was last changed, as HDFS or the local disk has it."""
    seconds = file["modificationTime"] / 1000 if "modificationTime" in file else file["mtime"]
    return datetime.fromtimestamp(seconds, UTC)


def _split_url(url: str) -> SplitResult:
    parts = urlsplit(url)
    try:
        good = parts.scheme == "webhdfs" and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:  # the port
        good = False
    if not good:
        raise InputError(f"hadoop.storage: {url}: must be webhdfs://HOST:PORT/PATH, or the path of a folder")
    return parts
