"""Check wheels with own code before they travel with a model: only pure Python runs on every node."""

import hashlib
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from predictions.errors import InputError
from predictions.formats.manifest import Package

# The modules that would be replaced for the whole process: Python's, this project's and those of its libraries.
_TAKEN = {
    *sys.stdlib_module_names,
    *("predictions", "loader", "mapper", "reducer", "sitecustomize", "usercustomize"),
    *("numpy", "scipy", "pandas", "sklearn", "skops", "joblib", "threadpoolctl", "xxhash", "lightgbm", "xgboost"),
    *("packaging", "dateutil", "pydantic", "click", "fsspec", "requests", "happybase", "thriftpy2", "mlflow"),
}
_COMPILED = (".so", ".pyd", ".dylib", ".dll")


def check_wheels(paths: Sequence[Path]) -> list[tuple[Path, Package]]:
    """Return wheels and their hashes.

    Args:
        paths: the files.

    Raises:
        InputError: a file does not exist, is no wheel, has compiled code, or would replace this project's modules.
    """
    return [(path, Package(path.name, _check(path))) for path in paths]


def _check(path: Path) -> str:
    try:
        _name, _version, _build, tags = parse_wheel_filename(path.name)
        data = path.read_bytes()
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
    except InvalidWheelFilename as error:
        raise InputError(
            f"model.packages: {path.name}: not the name of a wheel, NAME-VERSION-py3-none-any.whl"
        ) from error
    except OSError as error:
        raise InputError(f"model.packages: {path}: {error.strerror}; `pip wheel --no-deps FOLDER` makes one") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"model.packages: {path}: not a wheel: {error}") from error
    if any((tag.abi, tag.platform) != ("none", "any") for tag in tags) or any(
        PurePosixPath(name).suffix in _COMPILED for name in names
    ):
        raise InputError(
            f"model.packages: {path.name}: has compiled code, so it goes into the packed environment, which is for one "
            f"kind of node: install it here, write the archive with `predictions pack environment.tar.gz {path.name}`, "
            "and set hadoop.environment"
        )
    paths = [PurePosixPath(name.replace("\\", "/")) for name in names]
    if any(each.is_absolute() or ".." in each.parts or not each.parts for each in paths):
        raise InputError(f"model.packages: {path.name}: has a file outside its folder; make the wheel again")
    if taken := sorted(_TAKEN & {each.parts[0].partition(".")[0] for each in paths}):
        raise InputError(
            f"model.packages: {path.name}: has a package or module called {taken[0]}, which would replace the one that "
            "this project uses; rename it"
        )
    return hashlib.sha256(data).hexdigest()
