"""The further cells of a prediction line: what a model says beyond a prediction and its probability.

`ModelManifest.columns` names their columns, in this order.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from predictions.formats.manifest import ModelManifest
from predictions.formats.prediction_line import PROBABILITIES
from predictions.formats.record_line import escape
from predictions.scoring.numbers import format_numbers, format_probabilities

Array = np.ndarray[Any, Any]
Cells = Callable[[Array], list[list[bytes]]]  # from what a predictor returns to the fields of some columns


def further_cells(manifest: ModelManifest) -> list[Cells]:
    """Return the functions that make a model's further cells."""
    if manifest.values:
        return [_each_value]
    if PROBABILITIES not in manifest.outputs:
        return []
    return [_most_probable(manifest.classes or [], manifest.top) if manifest.top else _each_probability]


def _each_value(values: Array) -> list[list[bytes]]:
    return list(map(format_numbers, values.T))


def _each_probability(probabilities: Array) -> list[list[bytes]]:
    return list(map(format_probabilities, probabilities.T))


def _most_probable(classes: list[Any], top: int) -> Cells:
    """Return the function that makes a JSON object of the most probable classes, which come first.

    Args:
        classes: the classes, in the order of the probabilities.
        top: how many are kept.
    """
    names = [escape(json.dumps(str(label), ensure_ascii=False).encode()) for label in classes]

    def cells(probabilities: Array) -> list[list[bytes]]:
        # A stable sort: of equally probable classes, the first one comes first.
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        kept = np.take_along_axis(probabilities, order, axis=1)
        columns = [
            map(b"%b: %b".__mod__, zip(map(names.__getitem__, ranked), format_probabilities(shares), strict=True))
            for ranked, shares in zip(order.T.tolist(), kept.T, strict=True)
        ]
        return [[b"{%b}" % b", ".join(row) for row in zip(*columns, strict=True)]]

    return cells
