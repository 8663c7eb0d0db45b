"""The values of each label of a release, from the cells of a row."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from predictions.formats.manifest import Predicted
from predictions.formats.prediction_line import (
    COLUMNS,
    CONTRIBUTIONS,
    ERROR,
    PREDICTION,
    PROBABILITIES,
    PROBABILITY,
    cell_column,
    names_of,
    qualifier,
)
from predictions.hbase.rows import Cell


class LabelCells:
    """Where a label's values are among the cells of a row.

    Args:
        columns: the columns of the release.
        predicted: the label.
    """

    def __init__(self, columns: Sequence[str], predicted: Predicted) -> None:
        self.name = predicted.name or ""
        prefix = [] if predicted.name is None else [predicted.name]
        self._type = _type_of(predicted)
        self._prediction, self._probability = (cell_column(qualifier(*prefix, name)) for name in COLUMNS)
        self._probabilities: dict[bytes, Any] = {}  # by column, the class
        self._predictions: dict[bytes, str] = {}  # by column, the name of the value
        self._most_probable = cell_column(qualifier(*prefix, PROBABILITIES))
        self._contributions = cell_column(qualifier(*prefix, CONTRIBUTIONS))
        self.model = predicted.model.sha256
        self._error = cell_column(qualifier(*prefix, ERROR)) if prefix else None
        for column in columns:
            *group, name = names_of(column)
            if group == [*prefix, PROBABILITY]:
                self._probabilities[cell_column(column)] = self._type(name)
            elif group == [*prefix, PREDICTION]:
                self._predictions[cell_column(column)] = name

    def values(self, cells: Mapping[bytes, Cell]) -> dict[str, Any]:
        """Return the values that the cells of a row have, in Python's types."""
        label, probability = cells.get(self._prediction), cells.get(self._probability)
        values: dict[str, Any] = {
            "prediction": None if label is None else self._type(text_of(label)),
            "probability": float(probability.value) if probability else None,
        }
        if most_probable := cells.get(self._most_probable):
            shares = json.loads(most_probable.value)
            values["probabilities"] = {self._type(name): float(share) for name, share in shares.items()}
        elif label is not None and self._probabilities:
            values["probabilities"] = _numbers(cells, self._probabilities)
        elif label is not None and self._predictions:
            values["predictions"] = _numbers(cells, self._predictions)
        if contributions := cells.get(self._contributions):
            values["contributions"] = json.loads(contributions.value)
        if self._error:
            values |= {"error": text_of(cells.get(self._error)), "model": self.model}
        return values


def _numbers(cells: Mapping[bytes, Cell], columns: Mapping[bytes, Any]) -> dict[Any, float]:
    """Return the numbers in some columns, by what the columns stand for."""
    return {name: float(cells[column].value) for column, name in columns.items() if column in cells}


def text_of(cell: Cell | None) -> str | None:
    """Return a cell's value as text; None if there is no cell."""
    return None if cell is None else cell.value.decode(errors="replace")


def _type_of(predicted: Predicted) -> Callable[[Any], Any]:
    """Return the type of the predictions: the label's, but a float for every regressor."""
    if predicted.task == "regression" or predicted.label.type == "real":
        return float
    return int if predicted.label.type == "integer" else str
