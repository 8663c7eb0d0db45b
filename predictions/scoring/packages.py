"""Make the wheels in a model's folder importable: own code that the model needs (`model.packages`).

Every process that loads the model does this, from the driver to the tasks and the lookups. The code runs with the
rights of that process, as the scripts in the release's folder `job` do: both are trusted as the release's storage is.
"""

import atexit
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from predictions.errors import InputError
from predictions.formats.manifest import Package

_folders: dict[str, Path] = {}  # where wheels are unpacked, by their SHA-256, the newest last


def install(wheels: Sequence[tuple[Path, Package]]) -> None:
    """Unpack wheels, whose hashes have been checked, and put them first on Python's path.

    A wheel is unpacked, since a package may read files next to its modules. Another version of a package that was
    imported before, by an earlier model of this process, is forgotten; the earlier model keeps its own objects.

    Raises:
        InputError: a file is not a wheel.
    """
    for path, package in wheels:
        if package.sha256 not in _folders:
            _folders[package.sha256] = _unpack(path)
        folder = str(_folders[package.sha256])
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)
        names = {name.partition(".")[0] for name in os.listdir(folder)}
        for module in [module for module in sys.modules if module.partition(".")[0] in names]:
            if not (getattr(sys.modules[module], "__file__", None) or "").startswith(folder):
                del sys.modules[module]


def _unpack(path: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="predictions-package."))
    atexit.register(_remove, folder, os.getpid())
    try:
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a wheel: {error}") from error
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process runs this as well
        shutil.rmtree(folder, ignore_errors=True)
