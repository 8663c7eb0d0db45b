"""Score now: records that a release does not have, or that have changed since, by the model of that very release."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

from threadpoolctl import ThreadpoolController

from predictions.errors import InputError, PredictionsError, ServiceError
from predictions.formats.manifest import MODEL_MANIFEST
from predictions.formats.record_line import NULL, SEPARATOR, escape, join_lines, unescape
from predictions.lookup.answer import Answer, Answers
from predictions.lookup.served import ServedRelease
from predictions.scoring.model import MODEL_FILE, Model, load_model
from predictions.sources.reader import Record
from predictions.storage import Storage

STATUSES = ("unscored", "changed")
LOAD_SECONDS = 10.0  # for which a lookup waits for a model that is being loaded, counted from the beginning of that
RETRY_SECONDS = 30.0  # after which one that could not be loaded is tried again


@dataclass
class _Loading:
    """A model that is being loaded, in a thread that nobody has to wait for: the storage may hang."""

    model: Future[tuple[Model, ThreadpoolController]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    def wait(self) -> tuple[Model, ThreadpoolController]:
        """Return the model, and what holds its libraries to one thread."""
        try:
            return self.model.result(max(0.0, self.since + LOAD_SECONDS - time.monotonic()))
        except NotYetError:
            raise ServiceError(f"the model was not there within {LOAD_SECONDS:g} s") from None

    @property
    def is_over(self) -> bool:
        """Whether it has failed, or hangs, for so long that it is worth another try."""
        failed = not self.model.done() or self.model.exception() is not None
        return failed and time.monotonic() > self.since + RETRY_SECONDS


class Scorer:
    """Scores records by the current release's model, which it loads when it first needs it.

    Args:
        storage: where the releases' folders are, as in `hadoop.storage`.
        name: of the predictions.
    """

    def __init__(self, storage: str, name: str) -> None:
        Storage(storage, name)  # to see that the URL is one
        self._storage = storage
        self._name = name
        self._loadings: dict[tuple[int, str], _Loading] = {}  # by process, since threads do not go over a fork

    def rescore(
        self, answers: Sequence[Answer], records: Mapping[str, Record], making: Answers, current: ServedRelease
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
        self, wanted: Mapping[str, Answer], records: Mapping[str, Record], making: Answers, current: ServedRelease
    ) -> dict[str, Answer]:
        model, threads = self._loading(current).wait()
        lines = [SEPARATOR.join((escape(name.encode()), making.features(records[name]), NULL)) for name in wanted]
        # One thread: a forked process whose parent has run more would wait for them for ever.
        with threads.limit(limits=1):
            scores = model.score(join_lines(lines))
        fields = zip(wanted.values(), scores.predictions, scores.probabilities, scores.errors, strict=True)
        return {found.id: making.online(found, *map(_text, of_one)) for found, *of_one in fields}

    def _loading(self, current: ServedRelease) -> _Loading:
        """Return the loading of a release's model, begun now unless it was before; no lock, for the sake of forks."""
        key = os.getpid(), current.model
        known = self._loadings.get(key)
        if known and known.is_over:
            self._loadings.pop(key, None)
        mine = _Loading()
        loading = self._loadings.setdefault(key, mine)
        if loading is mine:
            Thread(target=self._load, args=(current, key, mine.model), daemon=True).start()
        return loading

    def _load(
        self, current: ServedRelease, key: tuple[int, str], target: Future[tuple[Model, ThreadpoolController]]
    ) -> None:
        try:
            model = self._read(current, key[1])
            target.set_result((model, ThreadpoolController()))  # of the libraries that are loaded by now
        except BaseException as error:  # whoever waits for it gets it
            target.set_exception(error)
            return
        for other in self._loadings.keys() - {key}:  # the models of releases before
            self._loadings.pop(other, None)

    def _read(self, current: ServedRelease, sha256: str) -> Model:
        assert current.release
        folder = Storage(self._storage, self._name).release(current.release)
        with tempfile.TemporaryDirectory(prefix="model.") as local:
            for name in (MODEL_FILE, MODEL_MANIFEST):
                (Path(local) / name).write_bytes(folder.read(f"model/{name}"))
            model = load_model(Path(local) / MODEL_MANIFEST)
        if model.manifest.sha256 != sha256:
            raise InputError(f"{folder.path}/model is not the model of the release: another sha256")
        return model


def _text(value: bytes) -> str | None:
    return None if value == NULL else unescape(value).decode(errors="replace")
