"""Score records online that are new or have changed since the release, with the release's own model."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

from predictions.errors import InputError, PredictionsError, ServiceError
from predictions.formats.manifest import MODEL_MANIFEST
from predictions.formats.prediction_line import ERROR, cell_column
from predictions.formats.record_line import NULL, SEPARATOR, escape, join_lines, unescape
from predictions.hbase.rows import Cell, Row
from predictions.lookup.answer import Answer, AnswerBuilder
from predictions.lookup.served import ServedRelease
from predictions.scoring.files import load_models
from predictions.scoring.model import Model, Models
from predictions.sources.reader import Record
from predictions.storage import Storage

STATUSES = ("unscored", "changed")
LOAD_SECONDS = 10.0  # lookups wait for a model for that long, counted from the start of its loading
RETRY_SECONDS = 30.0  # a model that could not be loaded is tried again after that


@dataclass
class _Loading:
    """A model that a thread is loading; since the storage may hang, the time to wait for it is limited."""

    model: Future[Model | Models] = field(default_factory=Future)
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> Model | Models:
        """Return the model."""
        try:
            return self.model.result(max(0.0, self.started + LOAD_SECONDS - time.monotonic()))
        except NotYetError:
            raise ServiceError(f"the model was not loaded within {LOAD_SECONDS:g} s") from None

    @property
    def should_retry(self) -> bool:
        """Whether the loading has failed or hangs, and began long enough ago to try again."""
        failed = not self.model.done() or self.model.exception() is not None
        return failed and time.monotonic() > self.started + RETRY_SECONDS


class Scorer:
    """Score records with the served release's model, which is loaded on first use.

    Args:
        storage: URL or folder of the releases, as in `hadoop.storage`.
        name: name of the predictions.
    """

    def __init__(self, storage: str, name: str) -> None:
        Storage(storage, name)  # raises InputError if the URL is wrong
        self._storage = storage
        self._name = name
        # By process ID, since a fork has no threads, and by release.
        self._loadings: dict[tuple[int, str], _Loading] = {}

    def rescore(
        self, answers: Sequence[Answer], records: Mapping[str, Record], builder: AnswerBuilder, served: ServedRelease
    ) -> list[Answer]:
        """Return the answers; those that are `unscored` or `changed` get a prediction for the record as it is now.

        If the model cannot be loaded, these answers stay as they are, and their `error` says why.

        Args:
            answers: the answers of a lookup.
            records: the records of the lookup, by ID.
            builder: builds the new answers.
            served: the release whose model is used.
        """
        to_score = {answer.id: answer for answer in answers if answer.status in STATUSES}
        if not to_score:
            return list(answers)
        try:
            scored = self._score(to_score, records, builder, served)
        except PredictionsError as error:
            message = f"the record cannot be scored now: {error}"
            scored = {record_id: replace(answer, error=message) for record_id, answer in to_score.items()}
        return [scored.get(answer.id, answer) for answer in answers]

    def _score(
        self,
        answers: Mapping[str, Answer],
        records: Mapping[str, Record],
        builder: AnswerBuilder,
        served: ServedRelease,
    ) -> dict[str, Answer]:
        model = self._loading(served).wait()
        lines = [
            SEPARATOR.join((escape(record_id.encode()), builder.features(records[record_id]), NULL))
            for record_id in answers
        ]
        # One thread only: a process forked after the libraries have started more would wait for those for ever.
        with model.one_thread():
            scores = model.score(join_lines(lines))
        columns, timestamp = list(map(cell_column, (*model.columns, ERROR))), int(1000 * builder.now)
        rows = zip(answers.values(), *scores.cells, scores.errors, strict=True)
        return {answer.id: builder.online_answer(answer, _row(columns, fields, timestamp)) for answer, *fields in rows}

    def _loading(self, served: ServedRelease) -> _Loading:
        """Return the loading of a release's model; start it if needed. No lock: a fork could inherit it locked."""
        # Not by the model's SHA-256: with the same file, another release may have another threshold or other code.
        key = os.getpid(), served.release or ""
        last = self._loadings.get(key)
        if last and last.should_retry:
            self._loadings.pop(key, None)
        new = _Loading()
        loading = self._loadings.setdefault(key, new)
        if loading is new:
            Thread(target=self._load, args=(served, key, new.model), daemon=True).start()
        return loading

    def _load(self, served: ServedRelease, key: tuple[int, str], target: Future[Model | Models]) -> None:
        try:
            target.set_result(self._read(served))
        except BaseException as error:  # raised again in the threads that wait for the model
            target.set_exception(error)
            return
        for other in self._loadings.keys() - {key}:  # models of earlier releases
            self._loadings.pop(other, None)

    def _read(self, served: ServedRelease) -> Model | Models:
        assert served.release
        folder = Storage(self._storage, self._name).release(served.release)
        with tempfile.TemporaryDirectory(prefix="model.") as local:
            for name in folder.models.task_files:
                (Path(local) / name).write_bytes(folder.read(f"model/{name}"))
            model = load_models(Path(local) / MODEL_MANIFEST)
        if model.sha256 != served.model:
            raise InputError(f"{folder.path}/model is not the release's model: its SHA-256 differs from the manifest's")
        return model


def _row(columns: Sequence[bytes], fields: Sequence[bytes], timestamp: int) -> Row:
    pairs = zip(columns, fields, strict=True)
    return Row(b"", {column: Cell(unescape(field), timestamp) for column, field in pairs if field != NULL})
