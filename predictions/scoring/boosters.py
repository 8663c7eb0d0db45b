"""LightGBM's and XGBoost's estimators: read their boosters from a model's file, checked before C++ sees them.

skops writes a booster as an object whose state is LightGBM's text, or XGBoost's serialized buffer; setting this state
would hand it to a parser in C++ that trusts it. So the types of boosters are never trusted. In the file's schema, the
booster of an estimator is replaced by its state (`unwrap`), which skops then reads as plain text or bytes, and the
booster is made here from what `lightgbm_text` or `xgboost_buffer` has checked (`attach`).
"""

import importlib
import importlib.metadata
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from predictions.errors import InputError
from predictions.scoring.checks import lightgbm_text, xgboost_buffer
from predictions.scoring.checks.errors import ContentsError, require

# The libraries, and the distributions that have them; the first that is installed counts.
DISTRIBUTIONS = {"lightgbm": ("lightgbm",), "xgboost": ("xgboost-cpu", "xgboost")}

# Of these, skops sets attributes only. What they hold is checked or replaced by `attach`.
TRUSTED = (
    "collections.OrderedDict",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRanker",
    "lightgbm.sklearn.LGBMRegressor",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
    "xgboost.sklearn.XGBRanker",
    "xgboost.sklearn.XGBRegressor",
)

# scikit-learn does not know these as estimators of a kind.
RANKERS = ("lightgbm.sklearn.LGBMRanker", "xgboost.sklearn.XGBRanker")

_BOOSTERS = {"lightgbm.sklearn": "lightgbm.basic", "xgboost.sklearn": "xgboost.core"}  # by the estimators' modules
_BOOSTER = "_Booster"  # the attribute of an estimator
# The attributes that predicting needs. All others, the parameters of fitting among them, become those of a new
# estimator: LightGBM would hand them to its parser again, with each block.
_FITTED = {
    "lightgbm": (
        *("_objective", "_le", "_classes", "_n_classes", "_n_features", "_n_features_in", "_best_iteration"),
        *("_fitted_with_feature_names", "fitted_"),
    ),
    "xgboost": ("objective", "booster", "missing", "n_classes_", "feature_types", "enable_categorical"),
}
_EARLY_STOP = "pred_early_stop"  # of LightGBM: predictions that are not the sum of all trees


def library(name: str) -> ModuleType:
    """Import LightGBM or XGBoost, and keep it from writing to standard output, which has prediction lines.

    Raises:
        InputError: it is not installed, or a library that it needs is missing.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed ({error}): install the extra `predictions[{name}]`; for tasks, pack it with "
            "`predictions pack environment.tar.gz` and set hadoop.environment"
        ) from error
    except OSError as error:  # of the dynamic linker
        raise InputError(
            f"{name} cannot be loaded: {error}; it needs the system's package libgomp1 (`apt-get install libgomp1`)"
        ) from error
    if name == "lightgbm":
        module.register_logger(_Quiet())
    else:
        module.set_config(verbosity=0)
    return module


def version(name: str) -> str:
    """Return the version of a library; raise PackageNotFoundError if it is not installed."""
    return importlib.metadata.version(distribution(name))


def distribution(name: str) -> str:
    """Return the name of the installed distribution of a library, or of the library itself."""
    for candidate in DISTRIBUTIONS.get(name, ()):
        try:
            return importlib.metadata.distribution(candidate).name
        except importlib.metadata.PackageNotFoundError:
            continue
    return name


def libraries_of(estimator: Any) -> list[str]:
    """Return which of the libraries a fitted estimator, or one within it, is from."""
    return sorted({_library_of(each) for each in _estimators(estimator)})


def unwrap(schema: Any) -> set[str]:
    """Replace the boosters in the schema of a file of skops by their states; return the libraries they are from."""
    found: set[str] = set()
    nodes = [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if _unwrap_estimator(node):
                found.add(node["__module__"].partition(".")[0])
            nodes.extend(node.values())
        elif isinstance(node, list):
            nodes.extend(node)
    return found


def attach(estimator: Any) -> None:
    """Make the boosters of a fitted estimator, and of those within it, from their states.

    Raises:
        ContentsError: a booster is not what its library writes.
        InputError: a library is not installed.
    """
    for each in _estimators(estimator):
        state, name = vars(each).get(_BOOSTER), _library_of(each)
        if isinstance(state, dict):
            try:
                _attach_lightgbm(each, state) if name == "lightgbm" else _attach_xgboost(each, state)
            except ContentsError as error:
                raise ContentsError(f"its model of {name} is damaged: {error}") from error


def pandas_categories(estimator: Any) -> dict[str, list[Any]]:
    """Return the categories of the columns of the frame that a fitted estimator, or those within it, were fitted on.

    Returns:
        The categories by the names of the columns that were pandas' categories.

    Raises:
        ContentsError: it is not clear which columns these are, or XGBoost has cut the categories.
    """
    found: dict[str, list[Any]] = {}
    for each in _estimators(estimator):
        if not hasattr(each, "feature_names_in_"):
            continue  # it is not fitted, or was fitted on an array
        booster, by_number = getattr(each, _BOOSTER), {}
        if _library_of(each) == "xgboost":
            by_number = xgboost_buffer.pandas_categories(bytes(booster.save_raw("ubj")))
        elif booster.pandas_categorical:
            by_number = lightgbm_text.pandas_categories(booster.model_to_string(), booster.pandas_categorical)
        found |= {str(each.feature_names_in_[number]): values for number, values in by_number.items()}
    return found


def one_line(error: Exception) -> str:
    """Return the message of an error that was raised in C++, without its stack."""
    return " ".join(str(error).partition("Stack trace")[0].split())


class _Quiet:
    """A logger for LightGBM, which prints otherwise: what matters at scoring is raised."""

    def info(self, _message: str) -> None:
        """Drop a message."""

    warning = info


def _unwrap_estimator(node: dict[str, Any]) -> bool:
    module = _BOOSTERS.get(str(node.get("__module__")))
    try:
        attributes = node["content"]["content"]
        booster = attributes[_BOOSTER]
        is_booster = (booster["__module__"], booster["__class__"]) == (module, "Booster")
        if is_booster:
            attributes[_BOOSTER] = booster["content"]
    except (KeyError, TypeError):
        return False
    return is_booster


def _estimators(root: Any) -> Iterator[Any]:
    """Yield the estimators of both libraries within an object: in its attributes, lists, tuples and dictionaries."""
    seen: dict[int, Any] = {}
    objects = [root]
    while objects:
        value = objects.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if type(value).__module__ in _BOOSTERS:
            yield value
        elif isinstance(value, dict):
            objects.extend(value.values())
        elif isinstance(value, list | tuple):
            objects.extend(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
            objects.extend(vars(value).values())


def _library_of(estimator: Any) -> str:
    return type(estimator).__module__.partition(".")[0]


def _attach_lightgbm(estimator: Any, state: dict[str, Any]) -> None:
    lightgbm = library("lightgbm")
    text, best = state.get("_handle"), state.get("best_iteration", -1)
    if not isinstance(text, str) or not isinstance(best, int):
        raise ContentsError("it has no text or no best_iteration")
    params = vars(estimator).get("_other_params")
    require(not isinstance(params, dict) or not params.get(_EARLY_STOP), f"{_EARLY_STOP} is not supported")
    try:
        booster = lightgbm.Booster(model_str=lightgbm_text.checked(text))
    except lightgbm.basic.LightGBMError as error:
        raise ContentsError(one_line(error)) from error
    booster.best_iteration = best
    # LightGBM's 0: as many threads as OpenMP is limited to. Its default is the number of cores.
    _renew(estimator, booster, n_jobs=0)


def _attach_xgboost(estimator: Any, state: dict[str, Any]) -> None:
    xgboost = library("xgboost")
    handle = state.get("handle")
    if not isinstance(handle, bytes | bytearray):
        raise ContentsError("it has no buffer")
    model = bytearray(xgboost_buffer.checked(bytes(handle)))
    try:
        booster = xgboost.Booster(model_file=model)
    except xgboost.core.XGBoostError as error:
        raise ContentsError(one_line(error)) from error
    _renew(estimator, booster)


def _renew(estimator: Any, booster: Any, **params: Any) -> None:
    """Give an estimator its booster, and leave it only the attributes that predicting needs."""
    attributes = vars(estimator)
    kept = {name: attributes[name] for name in _FITTED[_library_of(estimator)] if name in attributes}
    attributes.clear()
    attributes.update({**vars(type(estimator)(**params)), **kept, _BOOSTER: booster})
