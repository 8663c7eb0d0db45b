"""The client: it reads records from the database and their predictions from HBase, both at the same time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from predictions.errors import InputError, ServiceError
from predictions.formats.prediction_line import qualifier
from predictions.formats.record_line import escape
from predictions.formats.row_key import row_keys, unfit
from predictions.hbase.pool import Pool
from predictions.lookup.answer import Answer, AnswerBuilder, LabelAnswer
from predictions.lookup.served import ReleaseRows, ServedRows
from predictions.settings import Settings, load_settings
from predictions.sources import open_reader
from predictions.sources.reader import Reader, Record

if TYPE_CHECKING:
    import pandas as pd

    from predictions.lookup.online import Scorer

__all__ = ["Answer", "Client", "LabelAnswer"]

T = TypeVar("T")
BLOCK_IDS = 1_000  # number of IDs in one lookup
# The columns that `join` adds, with pandas types that allow missing values; the prediction's depends on the label. With
# several labels, each has the columns `LABEL:prediction`, `LABEL:probability` and `LABEL:error`.
JOINED = {
    "status": "string",
    "prediction": "",
    "probability": "Float64",
    "release": "string",
    "scored": "string",
    "age": "Int64",
    "source": "string",
    "error": "string",
}
BY_LABEL = ("prediction", "probability")


class Client:
    """Look up records and their predictions; safe to use from several threads and in forked processes.

    The pointer to the served release is read again after half a second. A client keeps its connections open for the
    next lookups; `close` closes them, and so does the end of a `with` block.

    Args:
        settings: the settings, or the path of their file; by default `predictions.toml` of the working directory.
        max_age: age in seconds after which the prediction of an unchanged record is `expired`, not `fresh`.
        model: a storage with the releases' models, as in `hadoop.storage`, or True for that of the settings. Records
            that are not in the release, or have changed since, are then scored at once with the release's model
            (`fresh`, with `source` "online"). Needs the extra `online`.

    Raises:
        InputError: the settings are wrong, or the database does not exist.
    """

    def __init__(
        self,
        settings: Settings | Path | str | None = None,
        *,
        max_age: float | None = None,
        model: str | bool = False,
    ) -> None:
        if not isinstance(settings, Settings):
            settings = load_settings(Path(settings) if settings else None)
        if max_age is not None and not max_age >= 0:
            raise InputError(f"max_age: {max_age}: must be a number of seconds, 0 or more")
        self._max_age = max_age
        self._id = settings.database.id
        self._release_rows = ReleaseRows(settings)
        self._readers: Pool[Reader] = Pool(open_reader(settings.database))
        self._scorer = _scorer(settings.hadoop.storage if model is True else model, settings.name) if model else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; those in use are closed after their lookup."""
        self._release_rows.close()
        self._readers.close()

    def get(self, record_id: str | int) -> Answer:
        """Look up a record and its prediction.

        Args:
            record_id: record ID as text, exactly as the database writes it; an integer stands for its decimal digits.

        Raises:
            InputError: the database, the table or a column of the settings does not exist, or this is not a record ID.
        """
        return self.get_many([record_id])[0]

    def get_many(self, record_ids: Iterable[str | int]) -> list[Answer]:
        """Look up records and their predictions.

        Args:
            record_ids: record IDs, as in `get`. Each block of 1,000 is read from one release and one state of the
                database.

        Returns:
            The answers in the order of the IDs; an ID that is given twice has two.
        """
        if isinstance(record_ids, str):
            raise InputError(f"{record_ids!r} is one record ID, not several; pass a list of IDs, or use get")
        ids = list(map(_as_text, record_ids))  # what is not a record ID is refused before any is looked up
        return [answer for block in blocks(ids) for answer in self._answers(block)]

    def stream(self, record_ids: Iterable[str | int]) -> Iterator[Answer]:
        """Look up any number of records: yield the answers as `get_many` returns them, a block at a time.

        Args:
            record_ids: record IDs, as in `get_many`; only one block of them and its answers are in memory.
        """
        for block in blocks(map(_as_text, record_ids)):
            yield from self._answers(block)

    def unavailable(self) -> dict[str, str]:
        """Return which of `hbase` and `database` does not answer now, with the error message."""
        return self._look_up([""], {})[0]

    def join(self, frame: "pd.DataFrame", on: str | None = None) -> "pd.DataFrame":
        """Return a data frame with the predictions of its records as further columns.

        Args:
            frame: a data frame with record IDs, as text or integers, in a column or in its index.
            on: name of that column or index; by default the name of the ID column in the database.

        Returns:
            The frame with further columns: `status`, `prediction`, `probability`, `release`, `scored`, `age`, `source`
            and `error`, as in `Answer`; its rows, their order and its index do not change. With several labels, each
            has `LABEL:prediction`, `LABEL:probability` and `LABEL:error` instead of the first two.

        Raises:
            InputError: the column does not exist, the frame has one of the new columns already, or a value is not a
                record ID.
        """
        import pandas as pd

        on = self._id if on is None else on
        if on not in frame.columns and on != frame.index.name:
            raise InputError(
                f"the data frame has no column {on!r} and no such index; pass the name of the ID column as on="
            )
        ids = frame[on] if on in frame.columns else frame.index
        if ids.ndim != 1:
            raise InputError(f"the data frame has several columns {on!r}; keep one")
        answers = self.get_many(ids)
        columns = _columns(answers)
        if conflicts := [name for name in columns if name in frame.columns]:
            raise InputError(f"the data frame has columns {', '.join(conflicts)} already; rename them")
        joined = {
            name: pd.Series(values, frame.index, type_ or _dtype(values)) for name, (values, type_) in columns.items()
        }
        return pd.concat([frame, pd.DataFrame(joined)], axis="columns")

    def _answers(self, ids: Sequence[str]) -> list[Answer]:
        keys = _keys(ids)
        unavailable, records, served_rows = self._look_up(ids, keys)
        served = served_rows.served if served_rows else None
        rows = served_rows.rows if served_rows else {}
        builder = AnswerBuilder(served, unavailable, self._max_age)
        answers = [
            builder.answer(record_id, records.get(record_id), rows.get(keys.get(record_id, b""))) for record_id in ids
        ]
        if self._scorer and served and served.release:
            return self._scorer.rescore(answers, records, builder, served)
        return answers

    def _look_up(
        self, ids: Sequence[str], keys: Mapping[str, bytes]
    ) -> tuple[dict[str, str], Mapping[str, Record], ServedRows | None]:
        """Return what did not answer with the error message, the records by ID, and the rows."""
        unavailable: dict[str, str] = {}
        served_rows: ServedRows | None = None
        records: Mapping[str, Record] = {}
        try:
            with ExitStack() as loans:  # if an exception leaves a reply unread, it closes the connection
                lookup = self._release_rows.send(list(set(keys.values())), loans)
                # HBase works on its request while the database is read.
                try:
                    with self._readers.lend() as reader:
                        records = reader.records(ids)
                    self._prepare(records)
                except ServiceError as error:
                    unavailable["database"] = str(error)
                served_rows = lookup.receive()
        except ServiceError as error:
            unavailable = {"hbase": str(error), **unavailable}
        return unavailable, records, served_rows

    def _prepare(self, records: Mapping[str, Record]) -> None:
        """Compute, while HBase works, what of the answers needs only the records."""
        features = self._release_rows.served.features if self._release_rows.served else ()
        with suppress(InputError):  # the features are those of a release that may be served no more
            Record.prepare(records.values(), features)


def blocks(items: Iterable[T]) -> Iterator[list[T]]:
    """Cut IDs, or their answers, into the blocks in which they are looked up, so that only one of them is in memory."""
    remaining = iter(items)
    while block := list(islice(remaining, BLOCK_IDS)):
        yield block


def _scorer(storage: str, name: str) -> "Scorer":
    try:
        from predictions.lookup.online import Scorer
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[online]'") from error
    return Scorer(storage, name)


def _as_text(record_id: Any) -> str:
    """Return a record ID as text."""
    if isinstance(record_id, str):
        return str(record_id)
    if isinstance(record_id, Integral) and not isinstance(record_id, bool):
        with suppress(ValueError):  # Python refuses to write more than a few thousand digits
            return str(int(record_id))
    shown = type(record_id).__name__ if isinstance(record_id, Integral) else repr(record_id)[:80]
    raise InputError(f"{shown} is not a record ID: it must be text, or an integer of at most a few thousand digits")


def _columns(answers: Sequence[Answer]) -> dict[str, tuple[list[Any], str]]:
    """Return the values of the columns that `join` adds and their pandas types; no type where the values decide."""
    columns = {}
    labels = {label: None for answer in answers for label in answer.labels or ()}
    for name, type_ in JOINED.items():
        if name not in BY_LABEL or not labels:
            columns[name] = [getattr(answer, name) for answer in answers], type_
        for label in labels if name in (*BY_LABEL, "error") else ():
            of_label = [(answer.labels or {}).get(label, LabelAnswer()) for answer in answers]
            columns[qualifier(label, name)] = [getattr(each, name) for each in of_label], type_
    return columns


def _dtype(values: Sequence[Any]) -> str:
    """Return the pandas type of a column of predictions."""
    types = {type(value) for value in values} - {type(None)}
    if not types <= {int, float}:
        return "string"
    return "Float64" if float in types else "Int64"


def _keys(ids: Sequence[str]) -> dict[str, bytes]:
    """Return the row keys by record ID, without IDs that cannot be in a release (they do not fit a row key)."""
    fields = [escape(record_id.encode(errors="surrogatepass")) for record_id in ids]
    unfit_indexes = unfit(fields)
    pairs = zip(ids, row_keys(fields), strict=True)
    return {record_id: key for index, (record_id, key) in enumerate(pairs) if index not in unfit_indexes}
