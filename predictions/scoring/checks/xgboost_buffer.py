"""Check a model as XGBoost serializes it, in UBJSON (https://ubjson.org), and return what is loaded of it.

XGBoost trusts it: a child, a feature or a class out of range reads or writes outside its arrays, and a circle never
ends. Its configuration (threads, devices, updaters) is not loaded.
"""

import struct
from itertools import pairwise
from typing import Any

import numpy as np

from predictions.scoring.checks.errors import ContentsError, require
from predictions.scoring.checks.nodes import Array, check_children, check_range

_INTEGERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8"}
_NUMBERS = {**_INTEGERS, b"u": ">u2", b"m": ">u4", b"M": ">u8", b"d": ">f4", b"D": ">f8"}
_CONSTANTS = {b"Z": None, b"T": True, b"F": False}
_MODEL = "Model"
_NODE_FIELDS = (  # arrays with a value for each node, and whether they hold integers
    *(("left_children", True), ("right_children", True), ("parents", True), ("split_indices", True)),
    *(("split_type", True), ("default_left", True), ("split_conditions", False), ("base_weights", False)),
    *(("loss_changes", False), ("sum_hessian", False)),
)
_NO_NODE = -1
_NO_PARENT = (1 << 31) - 1
_MOST_FEATURES = 1 << 24
_MOST_CATEGORY_BYTES = 256 << 20  # of the bitmaps that XGBoost makes of the categories


def checked(data: bytes) -> bytes:
    """Return the model of a serialized booster, without its configuration.

    Args:
        data: what `Booster.__getstate__` returns as the handle.

    Raises:
        ContentsError: the data is not what XGBoost writes, or has what is not supported.
    """
    reader = _Reader(data)
    try:
        document = reader.document()
    except (struct.error, IndexError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise ContentsError("it is not UBJSON") from error
    try:
        _check_learner(document[_MODEL]["learner"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, ContentsError):
            raise
        raise ContentsError(f"a part is missing or of another type: {error}") from error
    return data[reader.spans[_MODEL]]


def pandas_categories(model: bytes) -> dict[int, list[Any]]:
    """Return the categories of the columns that were pandas' categories at fitting, by the feature's number.

    Args:
        model: what `Booster.save_raw("ubj")` returns.

    Raises:
        ContentsError: it has categories that XGBoost has cut.
    """
    booster = _Reader(model).document()["learner"]["gradient_booster"]
    columns = booster.get("gbtree", booster)["model"].get("cats", {}).get("enc", [])
    found = {number: _category_values(column) for number, column in enumerate(columns)}
    return {number: values for number, values in found.items() if values}


def _category_values(column: dict[str, Any]) -> list[Any]:
    """Return numbers, or texts, which are one after the other in an array of bytes."""
    values = _integers(column["values"])
    if "offsets" not in column:
        return values.tolist()
    # It counts characters, and takes as many bytes (https://github.com/dmlc/xgboost/pull/12360).
    require((values >= 0).all(), "XGBoost cuts categories that are not ASCII; give them to an OrdinalEncoder before it")
    text = values.astype(np.uint8).tobytes().decode()
    return [text[start:end] for start, end in pairwise(_integers(column["offsets"]).tolist())]


class _Reader:
    """Read UBJSON, as far as XGBoost writes it; typed arrays become arrays of numpy.

    Args:
        data: the document, an object.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.spans: dict[str, slice] = {}  # where the values of the outermost object are

    def document(self) -> dict[str, Any]:
        require(self._take(1) == b"{", "it is not a serialized booster")
        document = self._object(self.spans)
        require(self._at == len(self._data), "it is followed by something else")
        return document

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        require(count >= 0 and len(taken) == count, "it ends too early")
        self._at += count
        return taken

    def _peek(self) -> bytes:
        return self._data[self._at : self._at + 1]

    def _value(self, kind: bytes) -> Any:
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return self._numbers(kind, 1)[0].item()
        if kind == b"S":
            return self._text()
        if kind == b"{":
            return self._object({})
        require(kind == b"[", f"unknown type {kind!r}")
        return self._array()

    def _numbers(self, kind: bytes, count: int) -> Array:
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _length(self) -> int:
        kind = self._take(1)
        require(kind in _INTEGERS, "a length is not an integer")
        return int(self._value(kind))

    def _text(self) -> str:
        return self._take(self._length()).decode()

    def _object(self, spans: dict[str, slice]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while self._peek() != b"}":
            name = self._text()
            require(name not in values, f"{name} is there twice")
            start = self._at
            values[name] = self._value(self._take(1))
            spans[name] = slice(start, self._at)
        self._take(1)
        return values

    def _array(self) -> Any:
        if self._peek() == b"$":
            self._take(1)
            kind = self._take(1)
            require(kind in _NUMBERS and self._take(1) == b"#", "unknown type of an array")
            return self._numbers(kind, self._length())
        if self._peek() == b"#":
            self._take(1)
            count = self._length()
            require(0 <= count <= len(self._data), "a length is out of range")
            return [self._value(self._take(1)) for _index in range(count)]
        values = []
        while self._peek() != b"]":
            values.append(self._value(self._take(1)))
        self._take(1)
        return values


def _check_learner(learner: dict[str, Any]) -> None:
    parameters, booster = learner["learner_model_param"], learner["gradient_booster"]
    features, classes, targets = (int(parameters[name]) for name in ("num_feature", "num_class", "num_target"))
    require(1 <= features <= _MOST_FEATURES, "num_feature is out of range")
    require(targets >= 1 and classes >= 0 and (targets == 1 or classes <= 1), "num_class is out of range")
    outputs = max(classes, targets, 1)
    scores = parameters["base_score"].strip("[]").split(",")
    require(len(scores) in (1, outputs), "base_score is not one for each class")
    np.array(scores, dtype=np.float64)
    for name in ("feature_names", "feature_types"):
        require(len(learner.get(name, [])) in (0, features), f"{name} is not one for each feature")
    name, weights = booster["name"], None
    require(name in ("gbtree", "dart"), f"the booster {name} is not supported")
    if name == "dart":
        booster, weights = booster["gbtree"], booster["weight_drop"]
    model = booster["model"]
    _check_model(model, features, outputs)
    require(weights is None or len(weights) == len(model["trees"]), "weight_drop is not one for each tree")
    rounds = len(_integers(model["iteration_indptr"])) - 1
    best = learner.get("attributes", {}).get("best_iteration")
    require(best is None or 0 <= int(best) < rounds, "best_iteration is out of range")
    if "cats" in model:
        _check_categories(model["cats"], features)


def _check_model(model: dict[str, Any], features: int, outputs: int) -> None:
    trees, groups, bounds = model["trees"], _integers(model["tree_info"]), _integers(model["iteration_indptr"])
    require(int(model["gbtree_model_param"]["num_trees"]) == len(trees) == len(groups), "trees are missing")
    require(outputs <= max(1, len(trees)), "num_class is out of range")
    check_range(groups, outputs, "the class of a tree")
    is_complete = len(bounds) and bounds[0] == 0 and bounds[-1] == len(trees) and (np.diff(bounds) >= 0).all()
    require(is_complete, "iteration_indptr is out of range")
    category_bytes = 0
    for number, tree in enumerate(trees):
        try:
            require(tree["id"] == number, "its id is another")
            category_bytes += _check_tree(tree, features)
        except ContentsError as error:
            raise ContentsError(f"tree {number}: {error}") from error
    require(category_bytes <= _MOST_CATEGORY_BYTES, "its categories would take too much memory")


def _check_tree(tree: dict[str, Any], features: int) -> int:
    """Check a tree; return how many bytes its sets of categories take."""
    parameters = tree["tree_param"]
    require(int(parameters["size_leaf_vector"]) <= 1, "trees with several outputs are not supported")
    require(int(parameters["num_feature"]) <= features, "num_feature is out of range")
    nodes = int(parameters["num_nodes"])
    require(nodes >= 1, "it has no node")
    fields: dict[str, Array] = {}
    for name, is_integer in _NODE_FIELDS:
        fields[name] = _integers(tree[name]) if is_integer else _floats(tree[name])
        require(len(fields[name]) == nodes, f"{name} is not one for each node")
    left, right, parents = fields["left_children"], fields["right_children"], fields["parents"]
    require(((left == _NO_NODE) == (right == _NO_NODE)).all(), "a node has one child only")
    [inner] = np.nonzero(left != _NO_NODE)
    check_children(np.concatenate([left[inner], right[inner]]), nodes)
    require(parents[0] == _NO_PARENT, "its first node is not the root")
    require((parents[left[inner]] == inner).all() and (parents[right[inner]] == inner).all(), "a parent is another")
    check_range(fields["split_indices"][inner], features, "a feature")
    check_range(fields["split_type"], 2, "the type of a split")
    return _check_splits(tree, fields["split_type"])


def _check_splits(tree: dict[str, Any], types: Array) -> int:
    nodes, starts, sizes, categories = (
        _integers(tree[name]) for name in ("categories_nodes", "categories_segments", "categories_sizes", "categories")
    )
    require(np.array_equal(nodes, np.flatnonzero(types)), "the splits by category are others")
    require(len(starts) == len(sizes) == len(nodes), "a set of categories is missing")
    require(((starts >= 0) & (sizes > 0) & (starts + sizes <= len(categories))).all(), "a set of categories ends late")
    check_range(categories, 1 << 24, "a category")
    return sum(int(categories[start : start + size].max()) // 8 for start, size in zip(starts, sizes, strict=True))


def _check_categories(categories: dict[str, Any], features: int) -> None:
    """Check the categories of pandas' columns: for each feature its values, none of a feature that has none."""
    columns, bounds = categories["enc"], _integers(categories["feature_segments"])
    order = _integers(categories["sorted_idx"])
    if not columns:
        require(not len(order) and not bounds.any(), "it has categories of no column")
        return
    require(len(columns) == features and len(bounds) == features + 1, "the categories are not of each feature")
    require(bounds[0] == 0 and (np.diff(bounds) >= 0).all(), "the categories overlap")
    require(len(order) in (0, bounds[-1]), "the order of the categories is another")
    for number, (column, start, end) in enumerate(zip(columns, bounds[:-1], bounds[1:], strict=True)):
        values = _integers(column["values"])
        if "offsets" in column:
            offsets = _integers(column["offsets"])
            require(len(offsets) == (end - start + 1 if end > start else len(offsets)), f"categories of {number}")
            is_whole = not len(offsets) or (offsets[0] == 0 and offsets[-1] == len(values))
            require(is_whole and (np.diff(offsets) >= 0).all(), "a category is out of range")
            count = max(0, len(offsets) - 1)
        else:
            count = len(values)
        require(count == end - start, "the number of categories is another")
        if len(order):
            require(
                (np.sort(order[start:end]) == np.arange(end - start)).all(), "the order of the categories is another"
            )


def _integers(values: Any) -> Array:
    array = np.asarray(values)
    require(array.ndim == 1 and (array.dtype.kind in "iub" or not array.size), "an array holds no integers")
    return array.astype(np.int64)


def _floats(values: Any) -> Array:
    array = np.asarray(values)
    require(array.ndim == 1 and (array.dtype.kind in "fiu" or not array.size), "an array holds no numbers")
    return array
