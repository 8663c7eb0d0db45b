"""The client: records from the database and their predictions from HBase, in two requests at the same time."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from predictions.errors import InputError, ServiceError
from predictions.formats.record_line import escape
from predictions.formats.row_key import row_keys, unfit
from predictions.hbase.pool import Pool
from predictions.lookup.answer import Answer, Answers
from predictions.lookup.served import ReleaseRows, ServedRows
from predictions.settings import Settings, load_settings
from predictions.sources import open_reader
from predictions.sources.reader import Reader, Record

if TYPE_CHECKING:
    import pandas as pd

    from predictions.lookup.online import Scorer

__all__ = ["Answer", "Client"]

BLOCK_IDS = 1_000  # looked up at once
# What `join` adds, with the pandas types that hold "not known"; a prediction's depends on the label.
JOINED = {
    "status": "string",
    "prediction": "object",
    "probability": "Float64",
    "release": "string",
    "scored": "string",
    "age": "Int64",
    "source": "string",
    "error": "string",
}


class Client:
    """Answers record IDs, for any number of threads, and in processes forked from the one that made it.

    The release that is current is looked up anew after half a second. A client keeps connections for its next lookups;
    `close` closes them, as does leaving it as a context.

    Args:
        settings: the settings, or the path of their file; by default `predictions.toml` of the working directory.
        max_age: seconds since its scoring after which an unchanged record's prediction is `expired`, not `fresh`.
        model: where the releases' models are, a storage as in `hadoop.storage`, or True for that of the settings:
            records that are not in the release, or have changed since, are then scored by its model, now (`fresh`, with
            `source` "online"). Needs the extra `online`.

    Raises:
        InputError: the settings are wrong, or the database is not there.
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
            raise InputError(f"max_age: {max_age}: it must be a number of seconds, 0 or more")
        self._max_age = max_age
        self._id = settings.database.id
        self._served = ReleaseRows(settings)
        self._readers: Pool[Reader] = Pool(open_reader(settings.database))
        self._scorer = _scorer(settings.hadoop.storage if model is True else model, settings.name) if model else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, those that are in use as soon as they are not."""
        self._served.close()
        self._readers.close()

    def get(self, record_id: str | int) -> Answer:
        """Look up a record and its prediction.

        Args:
            record_id: the ID as text, exactly as the database writes it; an integer stands for its decimal digits.

        Raises:
            InputError: the settings name a database, a table or a column that is not there, or this is no ID.
        """
        return self.get_many([record_id])[0]

    def get_many(self, record_ids: Iterable[str | int]) -> list[Answer]:
        """Look up records and their predictions.

        Args:
            record_ids: the IDs, as in `get`. Each thousand of them is of one release and one moment of the database.

        Returns:
            The answers in the order of the IDs; to an ID that comes twice, two.
        """
        if isinstance(record_ids, str):
            raise InputError(f"{record_ids!r} is one record ID, not several: put it into a list, or use get")
        names = [_name(record_id) for record_id in record_ids]
        blocks = [names[start : start + BLOCK_IDS] for start in range(0, len(names), BLOCK_IDS)]
        return [found for block in blocks for found in self._answers(block)]

    def unavailable(self) -> dict[str, str]:
        """Return which half of an answer could not be had now, `hbase` or `database`, and why."""
        return self._ask([""], {})[0]

    def join(self, frame: "pd.DataFrame", on: str | None = None) -> "pd.DataFrame":
        """Return a data frame with the predictions of its records beside them.

        Args:
            frame: of which a column, or the index, holds the IDs, as text or integers.
            on: that column; by default the one, or the index, that is called as the ID is in the database.

        Returns:
            The frame with more columns: `status`, `prediction`, `probability`, `release`, `scored`, `age`, `source` and
            `error`, as of an `Answer`; its rows, their order and its index stay as they are.

        Raises:
            InputError: there is no such column, one of the new ones is there already, or something is no ID.
        """
        import pandas as pd

        on = self._id if on is None else on
        if on not in frame.columns and on != frame.index.name:
            raise InputError(f"the data frame has no column {on!r}, nor is its index called so: name the IDs' with on=")
        ids = frame[on] if on in frame.columns else frame.index
        if ids.ndim != 1:
            raise InputError(f"the data frame has several columns {on!r}: keep one")
        if there := [name for name in JOINED if name in frame.columns]:
            raise InputError(f"the data frame has columns {', '.join(there)} already: rename them")
        answers = self.get_many(ids)
        columns = {name: [getattr(found, name) for found in answers] for name in JOINED}
        types = JOINED | {"prediction": _dtype(columns["prediction"])}
        joined = {name: pd.Series(columns[name], frame.index, types[name]) for name in JOINED}
        return pd.concat([frame, pd.DataFrame(joined)], axis="columns")

    def _answers(self, names: Sequence[str]) -> list[Answer]:
        keys = _keys(names)
        unavailable, records, found = self._ask(names, keys)
        making = Answers(found.current if found else None, unavailable, self._max_age)
        stored = found.rows if found else {}
        answers = [making.of(name, records.get(name), stored.get(keys.get(name, b""))) for name in names]
        if self._scorer and found and found.current.release:
            return self._scorer.rescore(answers, records, making, found.current)
        return answers

    def _ask(
        self, names: Sequence[str], keys: Mapping[str, bytes]
    ) -> tuple[dict[str, str], Mapping[str, Record], ServedRows | None]:
        """Return which halves could not be had and why, the records, and what HBase has."""
        unavailable: dict[str, str] = {}
        found: ServedRows | None = None
        records: Mapping[str, Record] = {}
        try:
            with ExitStack() as lent:  # a reply that nobody waited for closes its connection
                lookup = self._served.send(list(set(keys.values())), lent)
                # HBase is at work while the database is.
                try:
                    with self._readers.lend() as reader:
                        records = reader.records(names)
                except ServiceError as error:
                    unavailable["database"] = str(error)
                found = lookup.receive()
        except ServiceError as error:
            unavailable = {"hbase": str(error), **unavailable}
        return unavailable, records, found


def _scorer(storage: str, name: str) -> "Scorer":
    try:
        from predictions.lookup.online import Scorer
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[online]'") from error
    return Scorer(storage, name)


def _name(record_id: Any) -> str:
    """Return an ID as text."""
    if isinstance(record_id, str):
        return str(record_id)
    if isinstance(record_id, Integral) and not isinstance(record_id, bool):
        with suppress(ValueError):  # Python writes no number of more than some thousand digits
            return str(int(record_id))
    shown = type(record_id).__name__ if isinstance(record_id, Integral) else repr(record_id)[:80]
    raise InputError(f"{shown} is no record ID: it must be text or an integer of not too many digits")


def _dtype(values: Sequence[Any]) -> str:
    """Return the pandas type of a column of predictions."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds <= {int, float}:
        return "string"
    return "Float64" if float in kinds else "Int64"


def _keys(names: Sequence[str]) -> dict[str, bytes]:
    """Return the row keys of those IDs that can have one; others are in no release."""
    fields = [escape(name.encode(errors="surrogatepass")) for name in names]
    bad = unfit(fields)
    return {
        name: key for place, (name, key) in enumerate(zip(names, row_keys(fields), strict=True)) if place not in bad
    }
