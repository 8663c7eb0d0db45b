"""Score with scikit-learn, and keep its estimators in files that skops writes and checks.

Unlike pickle, skops runs no code from the file. It refuses types outside its own list, but ordinary scikit-learn models
need a few more. Those in `TRUSTED` were reviewed one by one: they are built without calling anything that the file
names. A file with any other type is refused.

skops does not look at what the types hold. Here, the file is checked before it is loaded (`archive`), the parts of a
tree before it is made (`trees`), and the estimator before it predicts (`contents`).
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from sklearn.pipeline import Pipeline
from skops.io._sklearn import TreeNode
from skops.io.exceptions import UntrustedTypesFoundException
from threadpoolctl import ThreadpoolController

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.scoring import boosters
from predictions.scoring.checks.archive import check_archive
from predictions.scoring.checks.contents import check_estimator
from predictions.scoring.checks.errors import ContentsError
from predictions.scoring.checks.trees import check_parts
from predictions.scoring.features import TOO_LARGE
from predictions.scoring.frame import FrameReader

_SCHEMA = "schema.json"  # of a file of skops
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

TRUSTED = (
    "numpy.dtype",
    # HistGradientBoosting keeps a partial call of check_array in front of its columns, if some are categories. A
    # partial call names its function, which is checked like any other.
    "functools.partial",
    "sklearn.utils.validation.check_array",
    # skops does not trust these, since compiled code follows their indices (skops#535); `trees` checks them.
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    *boosters.TRUSTED,
)


class EstimatorPredictor:
    """Score with a fitted estimator.

    Args:
        estimator: a fitted scikit-learn estimator that takes a data frame with the features' names.
        manifest: their names and types, and whether the estimator is a classifier.
        reader: reads the features; the models of several labels share it.

    Raises:
        InputError: the estimator cannot predict what the manifest says.
    """

    def __init__(self, estimator: Any, manifest: ModelManifest, reader: FrameReader | None = None) -> None:
        self.estimator = estimator
        try:
            self._predict = estimator.predict_proba if manifest.classes else estimator.predict
        except AttributeError as error:
            raise InputError(f"the model cannot predict: {error}; restore it, or start a new release") from error
        self._reader = reader or FrameReader(manifest.features, manifest.schema)
        self._brings_schema = bool(manifest.schema)
        several = manifest.classes or manifest.values
        self._outputs = (len(several),) if several else ()
        self._takes_array = self._brings_schema and _was_fitted_on_array(estimator)
        self._explainer = _explainer(estimator, manifest)
        # Made once the estimator's libraries are loaded: it limits those that it sees.
        self._threads = ThreadpoolController()

    def predict(self, block: bytes, ends: np.ndarray) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """See `predictions.scoring.model.Predictor`."""
        frame, bad_rows = self._read(block, ends)
        if self._brings_schema:
            return self.predict_frame(frame, bad_rows), bad_rows
        try:
            return self._values(frame), bad_rows
        except ValueError:
            # A number that fits its column may not fit a float32 once it is scaled. scikit-learn raises for the block.
            too_large = self._too_large(frame)
            if not too_large:
                raise
        for row, name in too_large.items():
            bad_rows.setdefault(row, f"{name}: {TOO_LARGE}")
        frame.iloc[list(too_large)] = np.nan
        return self._values(frame), bad_rows

    def _values(self, frame: pd.DataFrame | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(self._predict(frame), dtype=np.float64)  # XGBoost's are float32

    def contributions(self, block: bytes, ends: np.ndarray, outputs: np.ndarray) -> np.ndarray[Any, Any]:
        """See `predictions.scoring.model.Predictor`."""
        return self._explainer.contributions(self._read(block, ends)[0], outputs)

    def _read(self, block: bytes, ends: np.ndarray) -> tuple[pd.DataFrame, dict[int, str]]:
        return self._reader.read(block, ends.shape[1] - 1 - len(self._reader.columns))

    def input(self, frame: pd.DataFrame) -> pd.DataFrame | np.ndarray[Any, Any]:
        """Return a frame in the form that the estimator takes."""
        return frame.to_numpy() if self._takes_array else frame

    def predict_frame(self, frame: pd.DataFrame, bad_rows: dict[int, str]) -> np.ndarray[Any, Any]:
        """Predict with a model that was brought in.

        Args:
            frame: what it takes.
            bad_rows: gets the rows with missing values that make the model raise, and the reason.
        """

        def predict(part: pd.DataFrame) -> np.ndarray[Any, Any]:
            return self._values(self.input(part))

        try:
            return predict(frame)
        except (TypeError, ValueError):
            missing = frame.isna().to_numpy()
            if not missing.any():
                raise
        values: np.ndarray[Any, Any] | None = None
        patterns, numbers = np.unique(missing, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            rows = np.flatnonzero(numbers == number)
            try:
                predicted = predict(frame.iloc[rows])
            except (TypeError, ValueError) as error:
                if not pattern.any():
                    raise
                names = ", ".join(frame.columns[pattern])
                reason = f"{names}: missing, and the model raises {type(error).__name__}: {str(error).splitlines()[0]}"
                for row in rows.tolist():
                    bad_rows.setdefault(row, reason)
                continue
            if values is None:
                values = np.full((len(frame), *predicted.shape[1:]), np.nan)
            values[rows] = predicted
        return np.full((len(frame), *self._outputs), np.nan) if values is None else values

    def _too_large(self, frame: pd.DataFrame) -> dict[int, str]:
        """Return the rows with a number that is not a finite float32 after the preparation, with its column."""
        if not isinstance(self.estimator, Pipeline) or len(self.estimator) < 2:
            return {}
        preparation = self.estimator[:-1]
        with np.errstate(over="ignore"):
            is_too_large = np.isinf(np.asarray(preparation.transform(frame), dtype=np.float32))
        names = [str(name).partition("__")[2] for name in preparation.get_feature_names_out()]
        return {row: names[is_too_large[row].argmax()] for row in np.flatnonzero(is_too_large.any(axis=1)).tolist()}

    def one_thread(self) -> AbstractContextManager[object]:
        """See `predictions.scoring.model.Predictor`."""
        return self._threads.limit(limits=1)


def _explainer(estimator: Any, manifest: ModelManifest) -> Any:
    needs = manifest.contributions
    if not needs:
        return None
    from predictions.scoring.estimator_contributions import explainer_for  # imports all of scikit-learn's trees

    return explainer_for(estimator, needs.sources, len(manifest.features), needs.means)


def _was_fitted_on_array(estimator: Any) -> bool:
    """Return whether scikit-learn has fitted an estimator on an array: it then warns when it gets a data frame.

    Own code, which may keep no names of a frame's columns, gets a frame.
    """
    first = estimator.steps[0][1] if isinstance(estimator, Pipeline) else estimator
    return type(first).__module__.startswith("sklearn.") and not hasattr(first, "feature_names_in_")


def save(estimator: Any, path: Path, trusted: Sequence[str] = ()) -> None:
    """Write an estimator; the same estimator gives the same bytes.

    Args:
        estimator: the estimator.
        path: the file to write.
        trusted: types that the settings trust in addition to `TRUSTED`.

    Raises:
        InputError: skops cannot save it, or it holds a type that was not reviewed.
    """
    try:
        skops.io.dump(estimator, path)
    except Exception as error:  # skops raises whatever an object's own state raises
        raise InputError(f"model.estimator: cannot be saved with skops: {error}") from error
    _check_types(path, trusted)
    _make_canonical(path)


def _construct_tree(node: TreeNode, construct: Callable[[TreeNode], Any] = TreeNode._construct) -> Any:
    """Make a tree of a file, as skops does, but look first at what it is made of."""
    check_parts(node.args.construct(), node.attrs.construct())  # skops makes each part once
    return construct(node)


TreeNode._construct = _construct_tree  # skops has no other place between reading a tree's parts and making it


def load(path: Path | str, trusted: Sequence[str] = ()) -> Any:
    """Read an estimator and check what it holds.

    Args:
        path: the file.
        trusted: types that the settings trust in addition to `TRUSTED`; never taken from the model's own files.

    Raises:
        InputError: it is not a file of skops, it holds a type that was not reviewed, its content could crash the
            process that predicts with it, or a library or own code that it needs is missing.
    """
    try:
        with open(path, "rb") as file:
            check_archive(file)
        unwrapped, libraries = _without_boosters(path)
        for name in libraries:
            boosters.library(name)
        estimator = skops.io.load(unwrapped, trusted=[*TRUSTED, *trusted])
        check_estimator(estimator)
        boosters.attach(estimator)
    except InputError:
        raise
    except (ImportError, AttributeError) as error:
        raise InputError(f"{path}: {error}; give its code as a wheel with model.packages") from error
    except UntrustedTypesFoundException:
        # Names the types. It is only called here, since it takes half as long as loading the model.
        _check_types(path, trusted)
        raise
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: not a file of skops ({error}); other formats, such as pickle and joblib, are never opened; "
            "save the estimator with skops.io.dump, restore the file, or start a new release"
        ) from error
    except ContentsError as error:
        raise InputError(f"{path}: {error}; restore it, or start a new release") from error
    except (
        Exception
    ) as error:  # skops and the types' own states raise anything, also MemoryError, if a file was changed
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: cannot be loaded: {reason}; restore it, or start a new release") from error
    return estimator


def _without_boosters(path: Path | str) -> tuple[Path | str | io.BytesIO, set[str]]:
    """Return a file of skops with boosters' states in place of boosters (`boosters.unwrap`), and their libraries.

    A file without boosters is returned as it is, unread but for its schema: it may be large.
    """
    with zipfile.ZipFile(path) as archive:
        schema = json.loads(archive.read(_SCHEMA))
        libraries = boosters.unwrap(schema)
        if not libraries:
            return path, libraries
        files = {name: archive.read(name) for name in archive.namelist()}
    unwrapped = io.BytesIO()
    with zipfile.ZipFile(unwrapped, "w") as archive:
        for name, content in {**files, _SCHEMA: json.dumps(schema).encode()}.items():
            archive.writestr(name, content)
    return unwrapped, libraries


def untrusted_types(path: Path | str, trusted: Sequence[str] = ()) -> list[str]:
    """Return the types that a file holds, and that neither `TRUSTED` nor the settings name; nothing is imported."""
    file, _libraries = _without_boosters(path)
    return sorted(set(skops.io.get_untrusted_types(file=file)) - {*TRUSTED, *trusted})


def _make_canonical(path: Path) -> None:
    """Replace what differs from one run to the next in a file of skops: memory addresses, and the time."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files.pop(_SCHEMA))
    ids: dict[int, int] = {}
    names: dict[str, str] = {}

    def number(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("__id__"), int):
                node["__id__"] = ids.setdefault(node["__id__"], len(ids) + 1)
            if isinstance(node.get("file"), str) and node["file"] in files:  # an array, named after its address
                node["file"] = names.setdefault(node["file"], f"{len(names)}{Path(node['file']).suffix}")
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            number(child)

    number(schema)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ((_SCHEMA, json.dumps(schema).encode()), *((names[name], files[name]) for name in names)):
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content)


def _check_types(path: Path | str, trusted: Sequence[str]) -> None:
    if untrusted := untrusted_types(path, trusted):
        raise InputError(
            f"{path}: holds types that were not reviewed: {', '.join(untrusted)}; choose an estimator without them, or "
            "review them and set model.trusted to their names"
        )
