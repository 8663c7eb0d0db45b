"""Fetch a fitted model from an MLflow registry (the extra `mlflow`).

Only two files of the model are used: `MLmodel`, which says how it was saved and its signature, and the file of skops.
MLflow itself loads nothing: it would trust the types that `MLmodel` lists (GHSA-w582-9x45-8mpx), which whoever writes
the model writes as well.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from predictions.errors import InputError, ServiceError

_VARIABLES = ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI")
_SAVE = 'mlflow.sklearn.log_model(model, name=…, serialization_format="skops")'
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")


class Registered(NamedTuple):
    """A model of the registry: its file on this machine, its version, and the inputs of its signature, if any."""

    path: Path
    version: str
    inputs: list[dict[str, Any]] | None


def fetch(origin: str, folder: Path) -> Registered:
    """Download a model of the registry.

    Args:
        origin: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        folder: where to write its files.

    Raises:
        InputError: no registry is set, there is no such model, or it was not saved with skops.
        ServiceError: the registry does not answer.
    """
    address = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), None)
    if not address:
        raise InputError(f"model.from: {origin}: set {_VARIABLES[1]} to the address of the MLflow server")
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[mlflow]'") from error
    for variable, value in _PATIENCE.items():  # MLflow's own is four minutes
        os.environ.setdefault(variable, value)
    name, _at, alias = origin.removeprefix("models:/").partition("@")
    try:
        if alias:
            version = str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
        else:
            name, _slash, version = name.rpartition("/")
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(folder)))
    except MlflowException as error:
        reason = f"{address}: {str(error).splitlines()[0]}".replace(_password(address), "")
        kind = InputError if error.error_code in _NOT_FOUND else ServiceError
        raise kind(f"model.from: {origin}: MLflow at {reason}") from error
    return Registered(*_read(path, origin, version))


def _read(folder: Path, origin: str, version: str) -> tuple[Path, str, list[dict[str, Any]] | None]:
    import yaml  # comes with MLflow

    try:
        described = yaml.safe_load((folder / "MLmodel").read_bytes())
        flavor = described["flavors"].get("sklearn")
        signature = described.get("signature")
        inputs = json.loads(signature["inputs"]) if signature and signature.get("inputs") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"model.from: {origin}: its MLmodel cannot be read: {error}") from error
    if not flavor:
        raise InputError(
            f"model.from: {origin}: not a model of mlflow.sklearn, but of {', '.join(described['flavors'])}"
        )
    if flavor.get("serialization_format") != "skops":
        kind = flavor.get("serialization_format") or "pickle"
        raise InputError(
            f"model.from: {origin}: saved with {kind}, which runs code when it is loaded; save it again: {_SAVE}"
        )
    path = (folder / str(flavor["pickled_model"])).resolve()
    if folder.resolve() not in path.parents:
        raise InputError(f"model.from: {origin}: its MLmodel names a file outside the model's folder")
    return path, version, inputs


def _password(address: str) -> str:
    """Return the user and the password in an address, with the @ behind them; if there are none, what no text has."""
    user, at, _host = urlsplit(address).netloc.rpartition("@")
    return user + at or "\0"
