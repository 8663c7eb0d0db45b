"""Look up predictions by one's own client, in a process of its own, and print what it took as JSON.

    python peers_lookups.py package SETTINGS COPIES ROWS LOOKUPS
    python peers_lookups.py happybase PORT,TABLE COPIES ROWS LOOKUPS
    python peers_lookups.py feast PORT,VIEW,OUTPUT COPIES ROWS LOOKUPS

The IDs are random ones of COPIES of ROWS records, the same for all clients. `first` is the seconds of the first lookup,
which begin with the making of the client; its imports come before. Unless LOOKUPS is 0, there are so many lookups of
one ID then, and a tenth as many of 100 IDs, after others that warm up HBase; and a sample of predictions.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency import Request, summary
from benchmarks.peers_jobs import FAMILY, FEATURES, HOST, feast_store

MANY = 100  # IDs of a lookup
WARM_UP = 300  # lookups of 100 IDs, which read most blocks of the table
SAMPLE = 50  # lookups of 100 IDs whose predictions are printed


class Package:
    """This package's client, which reads the record from the database as well, and compares the two."""

    def __init__(self, settings: str) -> None:
        from predictions.lookup.client import Client

        self._make = lambda: Client(Path(settings))

    def connect(self) -> None:
        self._client = self._make()

    def look_up(self, ids: Sequence[str]) -> list[Any]:
        return self._client.get_many(ids) if len(ids) > 1 else [self._client.get(ids[0])]

    @staticmethod
    def values(answer: Any) -> tuple[Any, Any]:
        return (answer.prediction, answer.probability) if answer.status == "fresh" else (answer.status, "nan")


class HappyBase:
    """A table of HappyBase, with the row keys that the loop has put."""

    def __init__(self, target: str) -> None:
        import happybase

        from predictions.formats.row_key import row_keys

        port, table = target.split(",")
        self._make = lambda: happybase.Connection(HOST, int(port)).table(table)
        self._row_keys = row_keys

    def connect(self) -> None:
        self._table = self._make()

    def look_up(self, ids: Sequence[str]) -> list[Any]:
        keys = self._row_keys([record_id.encode() for record_id in ids])
        if len(keys) == 1:
            return [self._table.row(keys[0])]
        rows = dict(self._table.rows(keys))
        return [rows[key] for key in keys]

    @staticmethod
    def values(row: dict[bytes, bytes]) -> tuple[Any, Any]:
        return tuple(row[f"{FAMILY}:{name}".encode()].decode() for name in FEATURES)


class Feast:
    """Feast's Python library, without its server."""

    def __init__(self, target: str) -> None:
        import feast  # noqa: F401  # imported here, so that it does not count

        port, self._view, output = target.split(",")
        self._make = lambda: feast_store(port, output)

    def connect(self) -> None:
        self._store = self._make()

    def look_up(self, ids: Sequence[str]) -> list[Any]:
        features = [f"{self._view}:{name}" for name in FEATURES]
        entities = [{"record_id": record_id} for record_id in ids]
        columns = self._store.get_online_features(features, entities).to_dict()
        return list(zip(*(columns[name] for name in FEATURES), strict=True))

    @staticmethod
    def values(row: tuple[Any, Any]) -> tuple[Any, Any]:
        return row


CLIENTS = {"package": Package, "happybase": HappyBase, "feast": Feast}


def main(name: str, target: str, copies: str, rows: str, lookups: str) -> None:
    client, chance, count = CLIENTS[name](target), random.Random(0), int(lookups)

    def wanted(ids: int) -> list[str]:
        return [f"{chance.randrange(int(copies))}-{chance.randint(1, int(rows))}" for _id in range(ids)]

    def measure(ids: int, times: int) -> list[Request]:
        requests = []
        for lookup in [wanted(ids) for _time in range(times)]:
            began = time.perf_counter()
            client.look_up(lookup)
            requests.append(Request(began, time.perf_counter() - began))
        return requests

    first = wanted(1)
    started = time.perf_counter()
    client.connect()
    client.look_up(first)
    result: dict[str, Any] = {"first": time.perf_counter() - started}
    if count:
        measure(MANY, WARM_UP)
        result["lookups"] = {ids: summary(measure(ids, times)) for ids, times in ((1, count), (MANY, count // 10))}
        sample = [wanted(MANY) for _lookup in range(SAMPLE)]
        answers = [client.values(answer) for lookup in sample for answer in client.look_up(lookup)]
        ids = [record_id for lookup in sample for record_id in lookup]
        result["sample"] = [
            (record_id, str(prediction), f"{float(probability):.7g}")
            for record_id, (prediction, probability) in zip(ids, answers, strict=True)
        ]
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
