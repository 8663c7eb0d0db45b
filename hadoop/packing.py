"""What a job ships: the bundle of our own modules, and for clusters without scikit-learn a packed environment."""

import importlib.metadata
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from predictions.errors import InputError, InternalError

CHECKOUT = Path(__file__).resolve().parent.parent

# What mapper.py and reducer.py import, and nothing that they do not.
TASK_MODULES = tuple(
    f"predictions/{name}.py"
    for name in (
        *("__init__", "counters", "errors", "faults", "features", "model", "records", "release", "rowkey", "schema"),
        *("task", "unreadable"),
    )
)
TASK_LIBRARIES = ("numpy", "pandas", "scikit-learn", "skops", "xxhash")

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same modules give the same bytes


def bundle() -> bytes:
    """Return the modules of the tasks as a zip file; `PYTHONPATH` is to name the folder that it is unpacked to."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in TASK_MODULES:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), (CHECKOUT / name).read_bytes())
    return packed.getvalue()


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
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
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
