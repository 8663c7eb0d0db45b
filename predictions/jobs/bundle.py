"""What a job ships: the scripts, our own modules, and for clusters without scikit-learn a packed environment."""

import importlib.metadata
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

from predictions.errors import InputError, InternalError

PACKAGES = Path(__file__).resolve().parents[2]

# What a task imports of our own, as whole folders.
FOLDERS = ("formats", "scoring", "comparison", "task")
TASK_MODULES = ("predictions/errors.py", *(f"predictions/{name}" for name in FOLDERS))
LOAD_MODULES = (*TASK_MODULES, "predictions/workers.py", "predictions/hbase", "loader")
LOAD_LIBRARIES = ("happybase",)
TASK_LIBRARIES = ("numpy", "pandas", "scikit-learn", "skops", "xxhash")

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same modules give the same bytes


def script(name: str) -> Path:
    """Return the path of mapper.py or reducer.py: beside the packages in a checkout, else where it was installed to."""
    if (PACKAGES / "setup.cfg").is_file():
        return PACKAGES / name
    return next(Path(str(file.locate())) for file in importlib.metadata.files("predictions") or () if file.name == name)


def bundle() -> bytes:
    """Return the modules of the tasks as a zip file; `PYTHONPATH` is to name the folder that it is unpacked to."""
    return _zip(_modules(TASK_MODULES))


def load_bundle() -> bytes:
    """Return, as `bundle`, the modules of the loader's tasks, with HappyBase and all that it needs.

    thriftpy2 is in part compiled, so the nodes need a Python of the same minor version, and the same kind of machine.
    """
    return _zip(_modules(LOAD_MODULES) | _libraries(LOAD_LIBRARIES))


def _modules(names: Iterable[str]) -> dict[str, Path]:
    """Return the files of modules and of folders of them, by their names below the folder of packages."""
    paths = [PACKAGES / name for name in ("predictions/__init__.py", *names)]
    files = chain.from_iterable(sorted(path.rglob("*.py")) if path.is_dir() else [path] for path in paths)
    return {str(file.relative_to(PACKAGES)): file for file in files}


def _zip(files: Mapping[str, Path]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes())
    return packed.getvalue()


def _libraries(names: Iterable[str]) -> dict[str, Path]:
    """Return the installed files, by their names below the folder of packages, of libraries and what they require."""
    wanted, known, files = list(names), set[str](), dict[str, Path]()
    while wanted:
        if (name := wanted.pop()) in known:
            continue
        known.add(name)
        library = importlib.metadata.distribution(name)
        for requirement in map(Requirement, library.requires or []):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for file in library.files or []:
            if file.parts[0] not in ("..", "__pycache__") and file.suffix not in (".pyc", ".c", ".pyx", ".pxd"):
                files[str(file)] = Path(str(library.locate_file(file)))
    return files


def pack_environment(path: Path) -> None:
    """Write a `.tar.gz` with the tasks' libraries, in the very versions that are installed here.

    The nodes need a Python of the same minor version; `PYTHONPATH` is to name the folder that it is unpacked to.

    Raises:
        InputError: the folder of the path is not there.
        InternalError: pip could not install a library.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no such folder")
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in TASK_LIBRARIES]
    constraints = [f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name != "predictions"]
    with tempfile.TemporaryDirectory() as folder:
        target, limits = Path(folder) / "environment", Path(folder) / "constraints.txt"
        limits.write_text("\n".join(constraints))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)]
        done = subprocess.run([*command, "--constraint", str(limits), *wanted], capture_output=True, text=True)
        if done.returncode:
            raise InternalError(f"pip could not make the environment: {done.stderr.strip().splitlines()[-1]}")
        temporary = path.with_name(path.name + ".part")
        with tarfile.open(temporary, "w:gz", compresslevel=1) as archive:
            archive.add(target, arcname=".", filter=_without_tests)
        temporary.replace(path)


def _without_tests(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Half of the files are the libraries' own tests, which every node would unpack.
    return None if {"tests", "__pycache__"} & set(Path(member.name).parts) else member
