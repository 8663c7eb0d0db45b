"""Score now: records that a release does not have, or that have changed since, by the model of that very release."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from threadpoolctl import ThreadpoolController

from predictions.answer import Answer, Answers
from predictions.database import Record
from predictions.errors import InputError, PredictionsError
from predictions.model import MANIFEST_FILE, MODEL_FILE, Model, load_model
from predictions.records import NULL, SEPARATOR, escape, join_lines, unescape
from predictions.served import Current
from predictions.storage import Storage

STATUSES = ("unscored", "changed")


class Scorer:
    """Scores records by the current release's model, which it loads when it first needs it.

    Args:
        storage: where the releases' folders are, as in `hadoop.storage`.
        name: of the predictions.
    """

    def __init__(self, storage: str, name: str) -> None:
        self._storage = partial(Storage, storage, name)  # made anew for each model: it must not go over a fork
        self._storage()  # to see that the URL is one
        self._loading: dict[int, Lock] = {}  # of each process: a fork may copy one that is held
        self._loaded: tuple[str, Model, ThreadpoolController] | None = None

    def rescore(
        self, answers: Sequence[Answer], records: Mapping[str, Record], making: Answers, current: Current
    ) -> list[Answer]:
        """Return the answers, those to records `unscored` or `changed` with a prediction of the record as it is.

        Where the model cannot be had, they stay as they are, and `error` says why.

        Args:
            answers: to any IDs.
            records: by ID, those that the database has.
            making: what makes such answers.
            current: the release whose model scores.
        """
        wanted = {found.id: found for found in answers if found.status in STATUSES}
        if not wanted:
            return list(answers)
        try:
            scored = self._score(wanted, records, making, current)
        except PredictionsError as error:
            scored = {name: replace(found, error=f"it cannot be scored now: {error}") for name, found in wanted.items()}
        return [scored.get(found.id, found) for found in answers]

    def _score(
        self, wanted: Mapping[str, Answer], records: Mapping[str, Record], making: Answers, current: Current
    ) -> dict[str, Answer]:
        model, threads = self._model(current)
        lines = [SEPARATOR.join((escape(name.encode()), making.features(records[name]), NULL)) for name in wanted]
        # One thread: a forked process whose parent has run more would wait for them for ever.
        with threads.limit(limits=1):
            scores = model.score(join_lines(lines))
        fields = zip(wanted.values(), scores.predictions, scores.probabilities, scores.errors, strict=True)
        return {found.id: making.online(found, *map(_text, of_one)) for found, *of_one in fields}

    def _model(self, current: Current) -> tuple[Model, ThreadpoolController]:
        sha256 = current.manifest["model"]["sha256"]
        with self._loading.setdefault(os.getpid(), Lock()):
            if not self._loaded or self._loaded[0] != sha256:
                model = self._load(current, sha256)
                self._loaded = sha256, model, ThreadpoolController()  # of the libraries that are loaded by now
            return self._loaded[1:]

    def _load(self, current: Current, sha256: str) -> Model:
        assert current.release
        folder = self._storage().release(current.release)
        with tempfile.TemporaryDirectory(prefix="model.") as local:
            for name in (MODEL_FILE, MANIFEST_FILE):
                (Path(local) / name).write_bytes(folder.read(f"model/{name}"))
            model = load_model(Path(local) / MANIFEST_FILE)
        if model.manifest["sha256"] != sha256:
            raise InputError(f"{folder.path}/model is not the model of the release: another sha256")
        return model


def _text(field: bytes) -> str | None:
    return None if field == NULL else unescape(field).decode(errors="replace")
