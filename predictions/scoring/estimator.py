"""Score with scikit-learn, and keep its estimators in files that skops writes and checks.

Unlike pickle, skops runs no code from the file. It refuses types outside its own list, but ordinary scikit-learn models
need a few more. Those in `TRUSTED` were reviewed one by one: they are built without calling anything that the file
names. A file with any other type is refused.

skops does not look at what the types hold. Here, the file is checked before it is loaded (`archive`), and the estimator
before it predicts (`contents`).
"""

import io
import json
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from sklearn.pipeline import Pipeline
from skops.io.exceptions import UntrustedTypesFoundException
from threadpoolctl import ThreadpoolController

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.scoring import boosters
from predictions.scoring.archive import check_archive
from predictions.scoring.contents import check_estimator
from predictions.scoring.errors import ContentsError
from predictions.scoring.features import TOO_LARGE
from predictions.scoring.frame import FrameReader

_SCHEMA = "schema.json"  # of a file of skops
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

TRUSTED = (
    "numpy.dtype",
    # HistGradientBoosting keeps a partial of check_array in front of its columns, if some are categories.
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
    """

    def __init__(self, estimator: Any, manifest: ModelManifest, reader: FrameReader | None = None) -> None:
        self.estimator = estimator
        self._predict = estimator.predict_proba if manifest.classes else estimator.predict
        self._reader = reader or FrameReader(manifest.features)
        self._explainer = _explainer(estimator, manifest)
        # Made once the estimator's libraries are loaded: it limits those that it sees.
        self._threads = ThreadpoolController()

    def predict(self, block: bytes, ends: np.ndarray) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """See `predictions.scoring.model.Predictor`."""
        frame, bad_rows = self._read(block, ends)
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

    def _values(self, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.asarray(self._predict(frame), dtype=np.float64)  # XGBoost's are float32

    def contributions(self, block: bytes, ends: np.ndarray, outputs: np.ndarray) -> np.ndarray[Any, Any]:
        """See `predictions.scoring.model.Predictor`."""
        return self._explainer.contributions(self._read(block, ends)[0], outputs)

    def _read(self, block: bytes, ends: np.ndarray) -> tuple[pd.DataFrame, dict[int, str]]:
        return self._reader.read(block, ends.shape[1] - 1 - len(self._reader.columns))

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


def save(estimator: Any, path: Path) -> None:
    """Write an estimator; the same estimator gives the same bytes.

    Raises:
        InputError: skops cannot save it, or it holds a type that was not reviewed.
    """
    try:
        skops.io.dump(estimator, path)
    except Exception as error:  # skops raises whatever an object's own state raises
        raise InputError(f"model.estimator: cannot be saved with skops: {error}") from error
    _check_types(path)
    _make_canonical(path)


def load(path: Path) -> Any:
    """Read an estimator and check what it holds.

    Raises:
        InputError: it is not a file of skops, it holds a type that was not reviewed, its content could crash the
            process that predicts with it, or a library that it needs is not installed.
    """
    try:
        with open(path, "rb") as file:
            check_archive(file)
        data, libraries = _without_boosters(path)
        for name in libraries:
            boosters.library(name)
        estimator = skops.io.loads(data, trusted=list(TRUSTED))
        check_estimator(estimator)
        boosters.attach(estimator)
    except InputError:
        raise
    except UntrustedTypesFoundException:
        # Names the types. It is only called here, since it takes half as long as loading the model.
        _check_types(path)
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


def _without_boosters(path: Path) -> tuple[bytes, set[str]]:
    """Return a file of skops with boosters' states in place of boosters (`boosters.unwrap`), and their libraries."""
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files[_SCHEMA])
    libraries = boosters.unwrap(schema)
    if not libraries:
        return data, libraries
    unwrapped = io.BytesIO()
    with zipfile.ZipFile(unwrapped, "w") as archive:
        for name, content in {**files, _SCHEMA: json.dumps(schema).encode()}.items():
            archive.writestr(name, content)
    return unwrapped.getvalue(), libraries


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


def _check_types(path: Path) -> None:
    data, _libraries = _without_boosters(path)
    untrusted = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
    if untrusted:
        raise InputError(
            f"{path}: holds types that were not reviewed: {', '.join(untrusted)}; choose an estimator without them, or "
            "review them and add them to TRUSTED in predictions/scoring/estimator.py"
        )
