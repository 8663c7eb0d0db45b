"""Check what a loaded estimator holds, before it predicts.

skops checks the types in a file, not their content, and parts of scikit-learn and scipy that are compiled use numbers
of the model as indices without a check. Each class with such parts has a check here: trees (see `trees`), nearest
neighbours, support vectors, k-means, and what makes or holds sparse matrices. All other estimators compute with numpy,
which raises.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.cluster._kmeans import _BaseKMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.neighbors._base import NeighborsBase
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder
from sklearn.svm._base import BaseLibSVM
from sklearn.tree import BaseDecisionTree
from sklearn.tree._tree import Tree
from sklearn.utils.validation import check_array

from predictions.scoring.checks.errors import ContentsError
from predictions.scoring.checks.trees import check_predictor, check_tree

_MOST_THREADS = 1024
_MERSENNE_WORDS, _PHILOX_WORDS = 624, 4  # what the generators' states have places for

Array = np.ndarray[Any, Any]


def check_estimator(estimator: Any) -> None:
    """Check an estimator and all that it holds, the parts first.

    Raises:
        ContentsError: a part could read or write beyond its arrays, or never end.
    """
    _Walk().visit(estimator)


class _Walk:
    """A walk over the objects of an estimator, each once. skops makes no cycles."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._trees = 0  # they are numbered in the order of the walk

    def visit(self, value: Any) -> None:
        if isinstance(value, (str, int, float, bytes, type, type(None))) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, (Tree, TreePredictor)):
            raise ContentsError(f"holds a {type(value).__name__} outside of the estimators that have them")
        for part in self._parts(value):
            self.visit(part)
        class_: Any = type(value)
        for check in _checks_of(class_):
            check(value)

    def _parts(self, value: Any) -> Iterable[Any]:
        if isinstance(value, dict):
            return [*value, *value.values()]
        if isinstance(value, (list, tuple, set, frozenset)):
            return value
        if isinstance(value, np.ndarray):
            return value.ravel().tolist() if value.dtype.hasobject else ()
        if isinstance(value, partial):
            return (value.func, value.args, value.keywords)
        attributes = dict(getattr(value, "__dict__", {}))
        _check_attributes(type(value), attributes)
        if isinstance(value, BaseDecisionTree) and "tree_" in attributes:
            self._check_trees([attributes.pop("tree_")], partial(check_tree, columns=_columns(value)))
        if isinstance(value, BaseHistGradientBoosting) and "_predictors" in attributes:
            predictors = [predictor for iteration in attributes.pop("_predictors") for predictor in iteration]
            self._check_trees(predictors, partial(check_predictor, is_categorical=_categorical_columns(value)))
        return attributes.values()

    def _check_trees(self, trees: Iterable[Any], check: Callable[[Any], None]) -> None:
        for tree in trees:
            try:
                check(tree)
            except ContentsError as error:
                raise ContentsError(f"tree {self._trees}: {error}") from error
            self._trees += 1


def _check_attributes(class_: type, attributes: dict[str, Any]) -> None:
    for name in attributes:
        if callable(getattr(class_, name, None)):  # it would be called instead, and might leave out its checks
            raise ContentsError(f"{class_.__name__} has an attribute with the name of its method {name}")
    for name in ("n_jobs", "_n_threads"):  # OpenMP ends the process if it cannot start so many
        if isinstance(attributes.get(name), int) and abs(attributes[name]) > _MOST_THREADS:
            raise ContentsError(f"{class_.__name__}.{name} is {attributes[name]}")


def _columns(estimator: Any) -> int:
    """Return the number of columns, which scikit-learn compares with that of each frame if there is one."""
    columns = vars(estimator).get("n_features_in_")
    if type(columns) is not int or columns < 1:
        raise ContentsError(f"{type(estimator).__name__}.n_features_in_ is {columns!r}")
    return columns


def _categorical_columns(estimator: Any) -> Array:
    """Return which columns of `HistGradientBoosting…` have known categories: bool, shape (columns)."""
    columns = _columns(estimator)
    is_categorical = estimator._bin_mapper.is_categorical_
    _require(estimator, "_in_fit" not in vars(estimator), "is in the middle of fitting")
    _require(estimator, _is_array(is_categorical, "bu", (columns,)), "has other columns than its bins")
    _require(estimator, _keeps_columns(estimator._preprocessor, columns), "has a preprocessor of other columns")
    is_categorical.setflags(write=False)
    return is_categorical != 0


def _keeps_columns(preprocessor: Any, columns: int) -> bool:
    """Return whether the preprocessor of `HistGradientBoosting…` is the one that it makes: it only moves columns."""
    if preprocessor is None:
        return True
    if type(preprocessor) is not ColumnTransformer:
        return False
    (encoder_name, encoder, is_category), (other_name, other, is_number), *rest = preprocessor.transformers_
    indices = preprocessor._transformer_to_input_indices
    return (
        type(encoder) is OrdinalEncoder
        and type(other) is FunctionTransformer
        and isinstance(other.func, partial)
        and other.func.func is check_array
        and not other.func.args
        and _is_array(is_category, "b", (columns,))
        and _is_array(is_number, "b", (columns,))
        and bool((is_category ^ is_number).all())
        and list(indices[encoder_name]) == np.flatnonzero(is_category).tolist()
        and list(indices[other_name]) == np.flatnonzero(is_number).tolist()
        and all(transformer == "drop" for _name, transformer, _columns in rest)
    )


def _check_gradient_boosting(estimator: Any) -> None:
    if "estimators_" not in vars(estimator):
        return
    columns, trees = _columns(estimator), estimator.estimators_
    _require(estimator, _is_array(trees, "O", (None, None)) and trees.size > 0, "has no table of trees")
    for tree in trees.ravel():
        _require(estimator, isinstance(tree, BaseDecisionTree) and tree.n_features_in_ == columns, "has another tree")
    # They add to what the first estimator predicts. All that it consists of has been checked.
    shape = estimator._raw_predict_init(np.zeros((1, columns), dtype=np.float32)).shape
    _require(estimator, shape == (1, trees.shape[1]), "has another number of trees than of outputs")


def _check_neighbours(estimator: Any) -> None:
    if "_fit_X" not in vars(estimator):
        return
    records, labels = estimator._fit_X, getattr(estimator, "_y", None)
    _require(
        estimator,
        (_is_sparse(records) or _is_array(records, "fiub", (None, None)))
        and records.shape == (estimator.n_samples_fit_, _columns(estimator)),
        "has other records than it was fitted on",
    )
    count = getattr(estimator, "n_neighbors", None)
    _require(estimator, count is None or 1 <= count <= records.shape[0], f"looks for {count} neighbours")
    classes = getattr(estimator, "classes_", None)
    if labels is not None:
        _require(estimator, isinstance(labels, np.ndarray) and len(labels) == records.shape[0], "has other labels")
        _require(estimator, not isinstance(classes, np.ndarray) or _in_range(labels, len(classes)), "has other classes")


def _check_support_vectors(estimator: Any) -> None:
    if "support_vectors_" not in vars(estimator):
        return
    vectors: Any = estimator.support_vectors_
    coefficients: Any = estimator._dual_coef_
    counts = estimator._n_support
    is_classifier = estimator._impl in ("c_svc", "nu_svc")
    count, classes = len(estimator.support_), len(counts)
    pairs = classes * (classes - 1) // 2
    _require(estimator, classes >= 2 and (is_classifier or classes == 2), f"has {classes} classes")
    _require(estimator, not is_classifier or (min(counts) >= 0 and counts.sum() == count), "has other support vectors")
    _require(estimator, _in_range(estimator.support_, estimator.shape_fit_[0]), "has other support vectors")
    _require(estimator, len(estimator._intercept_) == pairs, "has another number of intercepts")
    for probabilities in (estimator._probA, estimator._probB):
        _require(estimator, len(probabilities) in (0, pairs), "has another number of probabilities")
    _require(estimator, len(estimator._probA) == len(estimator._probB), "has another number of probabilities")
    if estimator._sparse:
        has_shape = _is_sparse(coefficients) and coefficients.data.size == (classes - 1) * count
        has_shape &= _is_sparse(vectors) and vectors.shape[0] == count
    else:
        has_shape = _is_array(coefficients, "f", (classes - 1, count))
        is_precomputed = callable(estimator.kernel) or estimator.kernel == "precomputed"  # without the vectors
        has_shape &= is_precomputed or _is_array(vectors, "f", (count, _columns(estimator)))
    _require(estimator, has_shape, "has other support vectors")


def _check_k_means(estimator: Any) -> None:
    if "cluster_centers_" in vars(estimator):
        has_shape = _is_array(estimator.cluster_centers_, "f", (None, _columns(estimator)))
        _require(estimator, has_shape and estimator.cluster_centers_.size > 0, "has centres of other columns")
        _require(estimator, estimator._n_threads >= 1, f"has {estimator._n_threads} threads")


def _check_one_hot(encoder: Any) -> None:
    """Check that each category's column lies within the sparse matrix."""
    if "categories_" not in vars(encoder):
        return
    columns, outputs, drop = len(encoder.categories_), encoder._n_features_outs, encoder._drop_idx_after_grouping
    _require(encoder, columns == _columns(encoder) == len(outputs), "has other columns")
    for index, categories in enumerate(encoder.categories_):
        codes = len(categories)
        if categories.dtype.kind not in "OUS":  # looked up by bisection
            descends = categories[1:] < categories[:-1]
            _require(encoder, not descends.any(), f"has the categories of column {index} in another order")
        infrequent = encoder._infrequent_indices[index] if encoder._infrequent_enabled else None
        if infrequent is not None:
            codes -= len(infrequent) - 1
            mapping = encoder._default_to_infrequent_mappings[index]
            _require(encoder, len(mapping) == len(categories), f"maps other categories of column {index}")
            _require(encoder, _in_range(mapping, codes), f"maps categories of column {index} to others")
        elif encoder._infrequent_enabled:
            mapping = encoder._default_to_infrequent_mappings[index]
            _require(encoder, mapping is None, f"maps categories of column {index} to others")
        if drop is not None and drop[index] is not None:
            _require(encoder, 0 <= drop[index] < codes, f"drops another category of column {index}")
            codes -= 1
        _require(encoder, outputs[index] == codes, f"has {outputs[index]} outputs for column {index}, not {codes}")


def _check_vocabulary(vectorizer: Any) -> None:
    vocabulary = vars(vectorizer).get("vocabulary_", {})
    places = sorted(vocabulary.values())
    _require(vectorizer, places == list(range(len(places))), "has other places in its vocabulary")


def _check_sparse(matrix: Any) -> None:
    _require(matrix, matrix.format in ("csr", "csc"), "is neither of rows nor of columns")
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ContentsError(f"{type(matrix).__name__} has other indices: {error}") from error


def _check_random(generator: Any) -> None:
    is_old = isinstance(generator, np.random.RandomState)
    state: Any = generator.get_state(legacy=False) if is_old else generator.bit_generator.state
    _require(generator, 0 <= state["state"].get("pos", 0) <= _MERSENNE_WORDS, "has another state")
    _require(generator, 0 <= state.get("buffer_pos", 0) <= _PHILOX_WORDS, "has another state")


_CHECKS: tuple[tuple[type, Callable[[Any], None]], ...] = (
    (BaseGradientBoosting, _check_gradient_boosting),
    (NeighborsBase, _check_neighbours),
    (BaseLibSVM, _check_support_vectors),
    (_BaseKMeans, _check_k_means),
    (OneHotEncoder, _check_one_hot),
    (CountVectorizer, _check_vocabulary),
    (DictVectorizer, _check_vocabulary),
    (scipy.sparse.spmatrix, _check_sparse),
    (scipy.sparse.sparray, _check_sparse),
    (np.random.RandomState, _check_random),
    (np.random.Generator, _check_random),
)


@cache
def _checks_of(class_: type) -> tuple[Callable[[Any], None], ...]:
    return tuple(check for checked, check in _CHECKS if issubclass(class_, checked))


def _is_array(array: Any, kinds: str, shape: tuple[int | None, ...]) -> bool:
    """Return whether it is an array of one of these kinds of types (numpy's letters) and this shape (None is any)."""
    return (
        isinstance(array, np.ndarray)
        and array.dtype.kind in kinds
        and array.ndim == len(shape)
        and all(want is None or size == want for size, want in zip(array.shape, shape, strict=True))
    )


def _is_sparse(matrix: Any) -> bool:
    return bool(scipy.sparse.issparse(matrix))


def _in_range(values: Any, count: int) -> bool:
    """Return whether all are integers from 0 to below a count."""
    values = np.asarray(values)
    return values.dtype.kind in "iu" and bool(((values >= 0) & (values < count)).all())


def _require(holder: Any, is_right: bool, reason: str) -> None:
    if not is_right:
        raise ContentsError(f"{type(holder).__name__} {reason}")
