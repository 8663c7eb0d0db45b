"""Read the labelled records of a release, or a sample of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress, islice
from typing import Any

import numpy as np
import pandas as pd

from predictions.errors import InputError
from predictions.formats.record_line import NULL, SEPARATOR, Column, join_lines, split_lines, unescape
from predictions.scoring.features import NumberDecoder
from predictions.scoring.frame import FrameReader
from predictions.settings import ModelSettings
from predictions.storage import ReleaseFolder


@dataclass(frozen=True)
class Sample:
    """Labelled records: their lines, features and labels (shape: rows), and how many the export has in all.

    `bad_rows` are those with a value that could not be read, which counts as missing, and the reasons.
    """

    lines: list[bytes]
    features: pd.DataFrame
    labels: np.ndarray
    labelled: int
    bad_rows: dict[int, str]


def read_sample(folder: ReleaseFolder, number: int, reader: FrameReader, settings: ModelSettings) -> Sample:
    """Return the labelled records for a label, or a random sample of them if there are more than the settings allow.

    Args:
        folder: the release.
        number: the label's number; the lines of the sample have this label alone.
        reader: reads their features.
        settings: the size and the seed of the sample.

    Raises:
        InputError: there are none, or a label is not of the column's type.
    """
    label, export = folder.manifest.all_labels[number], folder.manifest.export
    labelled = export.labelled_each[number] if export.labelled_each else export.labelled
    lines = _labelled_lines(folder, number)
    if labelled > settings.sample:
        chosen = np.zeros(labelled, dtype=bool)
        chosen[np.random.default_rng(settings.seed).choice(labelled, settings.sample, replace=False)] = True
        lines = compress(lines, chosen)
    sampled_lines = list(lines)
    if not sampled_lines:
        raise InputError(f"model.label: {label.name} is NULL in every record: there is nothing to learn from")
    frame, bad_rows = reader.read(join_lines(sampled_lines))
    return Sample(sampled_lines, frame, decode_labels(sampled_lines, label), labelled, bad_rows)


def first_texts(lines: list[bytes], count: int) -> list[bytes]:
    """Return the first so many lines that are valid UTF-8, which JSON requires."""
    return list(islice((line for line in lines if line.decode(errors="replace").encode() == line), count))


def _labelled_lines(folder: ReleaseFolder, number: int) -> Iterator[bytes]:
    unlabelled, labels = SEPARATOR + NULL, len(folder.manifest.all_labels)
    for path in folder.files("export"):
        for block in folder.blocks(path):
            lines = split_lines(block)
            if labels > 1:
                rows = (line.rsplit(SEPARATOR, labels) for line in lines)
                lines = [SEPARATOR.join((record, values[number])) for record, *values in rows]
            yield from (line for line in lines if not line.endswith(unlabelled))


def decode_labels(lines: list[bytes], label: Column) -> np.ndarray:
    """Return the labels of record lines, which are their last fields; InputError if one is not of the label's type."""
    decode, labels = _label_decoder(label.type), []
    for line in lines:
        field = line[line.rindex(SEPARATOR) + 1 :]
        try:
            labels.append(decode(field))
        except ValueError as error:
            record, value = (each.decode(errors="replace") for each in (line.partition(SEPARATOR)[0], field[:80]))
            raise InputError(
                f"model.label: {label.name} of record {record} is {value}, which is not of type {label.type}: {error}"
            ) from error
    return np.array(labels)


def _label_decoder(type_: str) -> Callable[[bytes], Any]:
    if type_ == "integer":
        return int
    return NumberDecoder().decode if type_ == "real" else lambda field: unescape(field).decode()
