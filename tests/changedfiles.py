"""Change model files so that their hashes and checksums fit again, and load and use each in a process of its own.

    python tests/changedfiles.py FOLDER SEED COUNT          COUNT random changes of the models in FOLDER
    python tests/changedfiles.py FOLDER NAME ... [--unchecked]    the changes of these names; without the checks

Prints a line of JSON for each: the change, and how it ended.
"""

import gc
import hashlib
import io
import json
import os
import random
import re
import resource
import select
import signal
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

from predictions.errors import InputError
from predictions.scoring import estimator as estimators
from predictions.scoring.files import load_model

SECONDS = 5  # of the processor, for one change
MEMORY = 1 << 30  # bytes, in addition to what the libraries take
NUMBERS = (-1, 0, 1, 2, 7, 255, 10**4, 2**31 - 1, 2**32, 2**62, -(2**63), float("nan"), float("inf"), -1e308, 0.5)
SCALARS = ("null", "true", "false", "[]", "{}", '"x"', "1e999", '"numpy"', *map(str, NUMBERS[:-4]))
TYPES = ("|O", "<f4", "<f8", ">f8", "<i4", "<i8", "<u4", "|u1", "<U3", "|V8", "<M8[s]", "|b1", "|V0", "<c16")
LOADERS = ("ObjectNode", "TreeNode", "ReduceNode", "LossNode", "ListNode", "DictNode", "TupleNode", "NdArrayNode")
LOADERS += ("FunctionNode", "TypeNode", "PartialNode", "ConstructorFromReduceNode", "CachedNode", "JsonNode")


class ModelFile:
    """The members of a model file, to be changed."""

    def __init__(self, path):
        with zipfile.ZipFile(path) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.schema = json.loads(self.members.pop("schema.json")) if "schema.json" in self.members else None

    def write(self, path, **options):
        with zipfile.ZipFile(path, "w", **options) as archive:
            if self.schema is not None:
                archive.writestr("schema.json", json.dumps(self.schema))
            for name, content in self.members.items():
                archive.writestr(name, content)

    def arrays(self, field):
        """Return the names of the arrays of nodes with this field."""
        return [name for name in self.members if field in (self.array(name).dtype.names or ())]

    def array(self, name):
        return np.load(io.BytesIO(self.members[name]))

    def set_array(self, name, array, **options):
        content = io.BytesIO()
        np.save(content, array, **options)
        self.members[name] = content.getvalue()

    def set_header(self, name, pattern, replacement):
        """Replace a part of an array's header, whatever its length becomes."""
        content = self.members[name]
        length = int.from_bytes(content[8:10], "little")
        header = (
            re.sub(pattern, lambda _match: replacement, content[10 : 10 + length].decode().rstrip()).encode() + b"\n"
        )
        self.members[name] = content[:8] + len(header).to_bytes(2, "little") + header + content[10 + length :]

    def objects(self):
        """Return all objects of the schema."""
        objects, waiting = [], [self.schema]
        while waiting:
            node = waiting.pop()
            waiting += node.values() if isinstance(node, dict) else node
            waiting = [child for child in waiting if isinstance(child, dict | list)]
            objects += [node] if isinstance(node, dict) else []
        return objects

    def attribute(self, name):
        """Return the attribute of this name of the first object that has one."""
        return next(node[name] for node in self.objects() if isinstance(node.get(name), dict))


# Random changes


def change_bytes(file, rng):
    name = rng.choice(list(file.members))
    content = bytearray(file.members[name])
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    file.members[name] = bytes(content)
    return name


def change_number(file, rng):
    name = rng.choice(list(file.members))
    array = file.array(name).copy()
    field = rng.choice(array.dtype.names) if array.dtype.names else ...
    target = array[field].reshape(-1) if array.ndim else array.reshape(-1)
    value = rng.choice([*NUMBERS, target.size, target.size - 1, rng.randrange(100)])
    with np.errstate(all="ignore"):
        for _ in range(rng.randint(1, 3) if target.size else 0):
            target[rng.randrange(target.size)] = np.array(value).astype(target.dtype)
    file.set_array(name, array)
    return f"{name} {field} {value}"


def change_shape(file, rng):
    name = rng.choice(list(file.members))
    size = file.array(name).size
    shapes = (f"({size + 1},)", "(0,)", "()", f"({size}, 1)", f"(1, {size})", "(1000000000000,)", "(2, 2)", "(-1,)")
    shape = rng.choice([*shapes, f"({size // 2}, 2)", "(4611686018427387904, 4)"])
    file.set_header(name, r"'shape': \(.*?\)", f"'shape': {shape}")
    return f"{name} {shape}"


def change_type(file, rng):
    name = rng.choice(list(file.members))
    type_ = rng.choice(TYPES)
    array = file.array(name)
    if array.dtype.names or rng.random() < 0.5:
        file.set_header(name, r"'[<>|=][a-zA-Z]\d+'", f"'{type_}'")
    elif array.dtype.kind != "U":
        file.set_array(name, array.astype(type_ if type_ not in ("|O", "|V0", "|V8") else "<f4"))
    return f"{name} {type_}"


def cut_off(file, rng):
    name = rng.choice(list(file.members))
    content = file.members[name]
    file.members[name] = rng.choice((content[: rng.randrange(len(content))], content * 2, content + b"\0" * 64, b""))
    return name


def swap_arrays(file, rng):
    one, other = rng.choice(list(file.members)), rng.choice(list(file.members))
    file.members[one], file.members[other] = file.members[other], file.members[one]
    return f"{one} {other}"


def change_array_length(file, rng):
    name = rng.choice(list(file.members))
    array = file.array(name)
    change = rng.choice(
        (lambda a: a[:-1], lambda a: a[1:], lambda a: a[::-1], lambda a: np.concatenate([a, a]), np.ravel)
    )
    if array.ndim:
        file.set_array(name, np.ascontiguousarray(change(array)))
    return name


def change_scalar(file, rng):
    node = rng.choice([node for node in file.objects() if node.get("__loader__") == "JsonNode"])
    node.pop("__id__", None)  # which equal numbers share
    before, node["content"] = node["content"], rng.choice(SCALARS)
    return f"{before} {node['content']}"


def change_key(file, rng):
    node = rng.choice(file.objects())
    key = rng.choice(list(node) or ["content"])
    others = [other[key] for other in file.objects() if key in other]
    before, node[key] = str(node.get(key))[:60], json.loads(json.dumps(rng.choice(others)))
    return f"{key}: {before} {str(node[key])[:60]}"


def change_loader(file, rng):
    node = rng.choice(file.objects())
    node["__loader__"] = rng.choice(LOADERS)
    return f"{node.get('__class__')} {node['__loader__']}"


def remove_key(file, rng):
    node = rng.choice(file.objects())
    key = rng.choice(list(node) or ["content"])
    node.pop(key, None)
    return key


def swap_objects(file, rng):
    one, other = rng.choice(file.objects()), rng.choice(file.objects())
    copies = json.loads(json.dumps([one, other]))
    one.clear(), one.update(copies[1])
    if rng.random() < 0.5:
        other.clear(), other.update(copies[0])
    return f"{copies[0].get('__class__')} {copies[1].get('__class__')}"


OF_ARRAYS = (change_bytes, change_number, change_number, change_shape, change_type, cut_off, swap_arrays)
OF_ARRAYS += (change_array_length,)
OF_SCHEMAS = (change_scalar, change_scalar, change_key, change_loader, remove_key, swap_objects)


def random_change(file, seed):
    rng = random.Random(seed)
    change = rng.choice(OF_ARRAYS + OF_SCHEMAS if file.schema else OF_ARRAYS)
    return f"{change.__name__} {change(file, rng)}"


# Changes most of which crash or hang scikit-learn


def own(places):
    return places


def last(places):
    return np.full(len(places), places[-1] + 1)


def set_node(field, value, split=True):
    """Return a change of a field of the last node that splits, or of the last leaf."""

    def change(file):
        is_tree = bool(file.arrays("left_child"))
        name = file.arrays("left_child" if is_tree else "feature_idx")[-1]
        nodes = file.array(name)
        splits = nodes["left_child"] != -1 if is_tree else nodes["is_leaf"] == 0
        if field == "bitset_idx":
            splits &= nodes["is_categorical"] != 0
        places = np.flatnonzero(splits if split else ~splits)
        nodes[field][places] = value(places) if callable(value) else value
        file.set_array(name, nodes)

    return change


def set_attribute(name, content):
    """Return a change of an attribute of a tree."""

    def change(file):
        attribute = next(node for node in file.objects() if "node_count" in node)[name]
        attribute.update({"content": content, "__id__": 10**6})  # equal numbers share an ID

    return change


def nodes_that_are_a_number(file):
    file.set_array(file.arrays("left_child")[0], np.array(3))


def more_outputs(file):
    """Give a tree's number of outputs, the last one of its arguments, another value."""
    tree = next(node for node in file.objects() if node.get("__loader__") == "TreeNode")
    tree["__reduce__"]["args"]["content"][2].update({"content": "1000000000", "__id__": 10**6})


def no_bitsets(file):
    for name in list(file.members):
        if file.array(name).ndim == 2 and file.array(name).dtype == np.uint32:
            file.set_array(name, np.zeros((0, 8), np.uint32))


def labels_out_of_range(file):
    _n, name = max((file.array(name).size, name) for name in file.members if file.array(name).dtype == np.int64)
    file.set_array(name, np.full_like(file.array(name), 2**40))


def more_trees_a_stage(file):
    """Give each stage's trees of gradient boosting in one row."""
    table = next(node for node in file.objects() if node.get("type") == "json" and len(node["shape"]["content"]) == 2)
    trees = [tree for row in table["content"] for tree in row["content"]]
    table["content"][0]["content"] = trees * 100
    del table["content"][1:]


def support_vectors_of_a_class(file):
    name = file.attribute("_n_support")["file"]
    file.set_array(name, file.array(name) * 10**6)


def one_output_a_column(file):
    for node in file.attribute("_n_features_outs")["content"]:
        node.update({"content": "1", "__id__": 10**6})  # equal numbers share an ID


# What is changed: the model, the change, and what the refusal must say.
NAMED = {
    "forest: a child that does not exist": ("forest", set_node("left_child", 2**40), "node 0 has a child 10995.* of"),
    "forest: a child before the nodes": ("forest", set_node("right_child", -(2**40)), "has a child -10995.* of"),
    "forest: a node is its own child": ("forest", set_node("left_child", own), "tree 4: node 0 has a child 0 of 27"),
    "forest: a node with two parents": ("forest", set_node("left_child", last), "node 1 has no parent or several"),
    "forest: a column that does not exist": ("forest", set_node("feature", 2**40), "compares column 109.* of 3"),
    "forest: a column before the columns": ("forest", set_node("feature", -(2**40)), "compares column -109.* of 3"),
    "forest: fewer nodes than there are": ("forest", set_attribute("node_count", "1"), "does not have the 1 nodes"),
    "forest: more nodes than there are": ("forest", set_attribute("node_count", "100000000"), "the 100000000 nodes"),
    "forest: nodes that are a number": ("forest", nodes_that_are_a_number, "a tree does not have the .* nodes"),
    "forest: more outputs than numbers of classes": ("forest", more_outputs, "no number of classes for each output"),
    "forest: no threshold": ("forest", set_node("threshold", float("nan")), "tree 4: node 0 has no threshold"),
    "forest: less deep than it is": (
        "forest",
        set_attribute("max_depth", "1"),
        "tree 4: it has a depth of 5, not of 1",
    ),
    "gradient: a child that does not exist": ("gradient", set_node("left_child", 2**40), "node 0 has a child 10995"),
    "gradient: a node is its own child": ("gradient", set_node("left_child", own), "node 0 has a child 0 of"),
    "gradient: a column that does not exist": ("gradient", set_node("feature", 2**40), "compares column 109"),
    "gradient: more trees than outputs": ("gradient", more_trees_a_stage, "another number of trees than of outputs"),
    "histogram: a child that does not exist": ("histogram", set_node("left", 2**32 - 1), "has a child 4294967295 of"),
    "histogram: a node is its own child": ("histogram", set_node("left", own), "node 0 has a child 0 of"),
    "histogram: a leaf is no leaf": ("histogram", set_node("is_leaf", 0, split=False), "has a child 0 of"),
    "histogram: a column that does not exist": ("histogram", set_node("feature_idx", 2**40), "compares column 1099"),
    "histogram: another bitset": ("histogram", set_node("bitset_idx", 2**32 - 1), "has a bitset beyond the"),
    "histogram: no bitsets": ("histogram", no_bitsets, "has a bitset beyond the 0 there are"),
    "neighbours: a class that does not exist": ("neighbours", labels_out_of_range, "KNeighborsClassifier has other"),
    "vectors: a column beyond the matrix": ("vectors", one_output_a_column, "OneHotEncoder has 1 outputs for column 0"),
    "vectors: more than there are": ("vectors", support_vectors_of_a_class, "SVC has other support vectors"),
}


# Loading and using


def use(folder, model, change, checked):
    """Change a model, load it and score with it; return how that ended."""
    with tempfile.TemporaryDirectory() as copy:
        manifest = json.loads((folder / model / "model.json").read_text())
        name, digest = ("model.npz", "compiled") if manifest["compiled"] else ("model.skops", "sha256")
        file = ModelFile(folder / model / name)
        what = change(file)
        file.write(Path(copy) / name)
        manifest[digest] = hashlib.sha256((Path(copy) / name).read_bytes()).hexdigest()
        (Path(copy) / "model.json").write_text(json.dumps(manifest))
        return what, in_child(lambda: load_and_score(Path(copy), (folder / "records.txt").read_bytes(), checked))


def load_and_score(folder, lines, checked):
    if not checked:
        estimators.check_estimator = lambda _estimator: None
    try:
        model = load_model(folder / "model.json")
    except InputError as error:
        return f"refused: {error}"
    scores = model.score(lines)
    return f"predicted: {len(scores.predictions)}"


def in_child(function):
    """Call a function in a child process; return its result, or how the process ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with open(f"/proc/{os.getpid()}/statm") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(6 * SECONDS)
        try:
            result = function()
        except BaseException as error:
            result = f"raised: {type(error).__name__}: {error}"
        os.write(writing, result.encode(errors="replace")[: select.PIPE_BUF])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        result = pipe.read().decode(errors="replace")
    _child, status = os.waitpid(child, 0)
    return f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else result


def main(folder, *arguments):
    warnings.simplefilter("ignore")
    gc.freeze()  # so that fewer pages are copied in each child
    names = [argument for argument in arguments if argument != "--unchecked"]
    checked = "--unchecked" not in arguments
    if names and names[0].isdigit():
        seed, count = map(int, names)
        models = ("histogram", "forest", "gradient", "linear", "neighbours", "vectors")
        plan = [
            ("compiled" if number % 5 == 4 else models[(number - number // 5) % len(models)], number)
            for number in range(count)
        ]
        changes = [(model, lambda file, key=f"{seed} {n}": random_change(file, key), n) for model, n in plan]
    else:
        changes = [(NAMED[name][0], lambda file, name=name: NAMED[name][1](file), name) for name in names or NAMED]
    for model, change, name in changes:
        what, outcome = use(Path(folder), model, change, checked)
        print(json.dumps({"name": name, "model": model, "what": what, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
