"""Pack what a job ships: the scripts, this project's modules and, for nodes without scikit-learn, the libraries."""

import importlib.metadata
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

from predictions.errors import InputError, InternalError
from predictions.scoring import boosters
from predictions.storage import Storage

PACKAGES = Path(__file__).resolve().parents[2]

# The folders of the package that a task imports, shipped whole.
FOLDERS = ("formats", "scoring", "comparison", "task")
TASK_MODULES = ("predictions/errors.py", *(f"predictions/{name}" for name in FOLDERS))
LOAD_MODULES = (*TASK_MODULES, "predictions/workers.py", "predictions/hbase", "loader")
LOAD_LIBRARIES = ("happybase",)
COMPILED_LIBRARIES = ("numpy", "xxhash")  # of tasks that score with a compiled model
TASK_LIBRARIES = (*COMPILED_LIBRARIES, "pandas", "scikit-learn", "skops")

# Distributions that have the same library without the code for GPUs: 5 MB instead of 130, and no NCCL, which has 300.
_WITHOUT_GPU = {"xgboost": "xgboost-cpu"}

_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file, so that the same modules give the same bytes


def script(name: str) -> Path:
    """Return the path of mapper.py or reducer.py: next to the packages in a checkout, else where the wheel put it."""
    if (PACKAGES / "setup.cfg").is_file():
        return PACKAGES / name
    return next(Path(str(file.locate())) for file in importlib.metadata.files("predictions") or () if file.name == name)


def bundle() -> bytes:
    """Return a scoring task's modules as a zip file; `PYTHONPATH` must name the folder that it is unpacked to."""
    return _zip(_modules(TASK_MODULES))


def load_bundle() -> bytes:
    """Return a loading task's modules as a zip file, like `bundle`, with HappyBase and all that it requires.

    Parts of thriftpy2 are compiled, so the nodes need the same minor version of Python and the same kind of machine.
    """
    return _zip(_modules(LOAD_MODULES) | _libraries(LOAD_LIBRARIES))


def _modules(names: Iterable[str]) -> dict[str, Path]:
    """Return the files of modules and of whole folders, by their paths below the folder of packages."""
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
    """Return the files of libraries and of all that they require, by their paths below the folder of packages."""
    wanted, seen, files = list(names), set[str](), dict[str, Path]()
    while wanted:
        if (name := wanted.pop()) in seen:
            continue
        seen.add(name)
        library = importlib.metadata.distribution(name)
        for requirement in map(Requirement, library.requires or []):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for file in library.files or []:
            if file.parts[0] not in ("..", "__pycache__") and file.suffix not in (".pyc", ".c", ".pyx", ".pxd"):
                files[str(file)] = Path(str(library.locate_file(file)))
    return files


def task_libraries(storage: Storage) -> Sequence[str]:
    """Return the libraries that tasks need for the newest release's model; scikit-learn's if it has no model yet."""
    newest = storage.release() if storage.releases() else None
    if not newest or not newest.has("model"):
        return TASK_LIBRARIES
    models = newest.models
    return COMPILED_LIBRARIES if models.is_compiled else (*TASK_LIBRARIES, *models.boosters)


def pack_environment(path: Path, libraries: Sequence[str], wheels: Sequence[Path] = ()) -> None:
    """Write a `.tar.gz` with libraries for tasks, in the versions that are installed here.

    The nodes need the same minor version of Python; `PYTHONPATH` must name the folder that it is unpacked to.

    Args:
        path: the file to write.
        libraries: their names; what they require is packed too.
        wheels: files of wheels to pack as well.

    Raises:
        InputError: the folder of the path does not exist.
        InternalError: pip could not install a library.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: its folder does not exist; create it first")
    wanted = [f"{_WITHOUT_GPU.get(name, name)}=={boosters.version(name)}" for name in libraries]
    wanted += map(str, wheels)
    constraints = [f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name != "predictions"]
    with tempfile.TemporaryDirectory() as folder:
        target, constraints_file = Path(folder) / "environment", Path(folder) / "constraints.txt"
        constraints_file.write_text("\n".join(constraints))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)]
        command += ["--constraint", str(constraints_file), *wanted]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise InternalError(f"pip could not install the libraries: {process.stderr.strip().splitlines()[-1]}")
        temporary = path.with_name(path.name + ".part")
        with tarfile.open(temporary, "w:gz", compresslevel=1) as archive:
            archive.add(target, arcname=".", filter=_without_tests)
        temporary.replace(path)


def _without_tests(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Half of the files are the libraries' own tests, which every node would have to unpack.
    return None if {"tests", "__pycache__"} & set(Path(member.name).parts) else member
