"""A lookup beside the two requests that it makes: `Client.get` and `get_many`, plain HappyBase, a plain database read.

All of it in one run, on 336,776 flights and their predictions in a table with four regions on the embedded cluster
(which is started, and stopped again, unless it is running).

- `get`: `Client.get` of one ID, `get_many` of more: the pointer, the record, the prediction, the comparison of the two.
- `happybase`: `table.row` of one row key, `table.rows` of more, on a HappyBase connection as it comes.
- `database`: `SELECT *` by primary key, on a connection that is open, rows as tuples.

Each thread of the plain ways has a connection of its own. Every way looks up the same IDs, drawn at random; the ways
are measured in turn, round after round, each round beginning with another one. A ratio is taken within each round.
"""

import json
import random
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import happybase

from benchmarks.flights import ROWS, SETTINGS, VAR, machine, make_release, running_cluster, score_local
from predictions.cli import exits
from predictions.formats.names import release_table
from predictions.formats.row_key import row_keys
from predictions.hbase.connection import Connection
from predictions.lookup.client import Client
from predictions.progress import bar, say
from predictions.settings import Settings, load_settings
from predictions.stages.activate import activate
from predictions.stages.load import How, load

HOST = "127.0.0.1"
NAME = "benchmark_lookup"
LOOKUPS = {1: 2_000, 10: 800, 100: 240}  # of a round, by the number of IDs
THREADS = (1, 8)
WAYS = ("get", "happybase", "database")

Look = Callable[[Sequence[str]], int]  # looks IDs up and returns how many were found


class Figures(NamedTuple):
    """What a round took: milliseconds of each lookup, and seconds in all."""

    milliseconds: list[float]
    seconds: float


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of all ways, each in turn.")
def main(as_json: bool, rounds: int) -> None:
    """Measure how long a lookup takes."""
    VAR.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="lookup.", dir=VAR) as local,
        running_cluster() as cluster,
        _served(Path(local), cluster.port("thrift")) as (settings, table),
        Client(settings) as client,
    ):
        makers = {
            "get": lambda: _client(client),
            "happybase": lambda: _happybase(settings, table),
            "database": lambda: _database(settings),
        }
        found = {(ids, threads): _measure(makers, ids, threads, rounds) for threads in THREADS for ids in LOOKUPS}
    result = {
        "ratios": {"get_vs_slower_request": round(_ratio(found[1, 1]), 3)},
        "lookups": [
            {
                "ids": ids,
                "threads": threads,
                "vs_slower_request": round(_ratio(rounds_of), 3),
                **_summary(rounds_of, ids),
            }
            for (ids, threads), rounds_of in found.items()
        ],
        "rows": ROWS,
        "rounds": rounds,
        "machine": machine(),
    }
    print(json.dumps(result) if as_json else _table(result))


@contextmanager
def _served(local: Path, thrift: int) -> Iterator[tuple[Settings, str]]:
    """Give the settings of the flights with a current release, and the name of its table; removed at the end."""
    folder = make_release(local)
    score_local(folder)
    settings = load_settings(SETTINGS)
    hbase = settings.hbase.model_copy(update={"thrift": f"{HOST}:{thrift}"})
    settings = settings.model_copy(update={"name": NAME, "hbase": hbase})
    table = release_table(NAME, folder.release)
    try:
        load(settings, folder, How(via="puts"), bar, say)
        activate(settings, folder.storage, folder.release, None, say, lambda _share: None)
        yield settings, table
    finally:
        with Connection(settings.hbase.server(loading=True)) as connection:
            for name in {NAME, table}:
                if name.encode() in connection.tables():
                    connection.delete_table(name)


def _client(client: Client) -> Look:
    def look(ids: Sequence[str]) -> int:
        answers = client.get_many(ids) if len(ids) > 1 else [client.get(ids[0])]
        return sum(answer.status == "fresh" for answer in answers)

    return look


def _happybase(settings: Settings, table: str) -> Look:
    server = settings.hbase.server()
    plain = happybase.Connection(server.host, server.port).table(table)

    def look(ids: Sequence[str]) -> int:
        keys = row_keys([record_id.encode() for record_id in ids])
        return len(plain.rows(keys)) if len(keys) > 1 else bool(plain.row(keys[0]))

    return look


def _database(settings: Settings) -> Look:
    path = settings.database.url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None)

    def look(ids: Sequence[str]) -> int:
        query = f"SELECT * FROM flights WHERE flight_id IN ({', '.join('?' * len(ids))})"
        return len(connection.execute(query, list(map(int, ids))).fetchall())

    return look


def _measure(makers: dict[str, Callable[[], Look]], ids: int, threads: int, rounds: int) -> list[dict[str, Figures]]:
    """Return of each round what each way took."""
    found = []
    for number in range(-1, rounds):  # the first is to warm up
        chance = random.Random(number)
        wanted = [[str(chance.randint(1, ROWS)) for _id in range(ids)] for _lookup in range(LOOKUPS[ids])]
        shift = number % len(WAYS)
        found.append({way: _round(makers[way], wanted, threads) for way in (*WAYS[shift:], *WAYS[:shift])})
    return found[1:]


def _round(make: Callable[[], Look], wanted: Sequence[Sequence[str]], threads: int) -> Figures:
    start = threading.Barrier(threads + 1)

    def run(part: Sequence[Sequence[str]]) -> list[float]:
        look, took = make(), []
        look(part[0])
        start.wait()
        for ids in part:
            began = time.perf_counter()
            found = look(ids)
            took.append(1e3 * (time.perf_counter() - began))
            if found != len(set(ids)) and found != len(ids):
                raise click.ClickException(f"{found} of {len(ids)} records were found")
        return took

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(run, wanted[number::threads]) for number in range(threads)]
        start.wait()
        began = time.perf_counter()
        took = [each for future in running for each in future.result()]
        return Figures(took, time.perf_counter() - began)


def _ratio(rounds: list[dict[str, Figures]]) -> float:
    """Return how many times the slower bare request's median a lookup's is, in the median of the rounds."""
    medians = [{way: statistics.median(figures.milliseconds) for way, figures in each.items()} for each in rounds]
    return statistics.median(each["get"] / max(each["happybase"], each["database"]) for each in medians)


def _summary(rounds: list[dict[str, Figures]], ids: int) -> dict[str, dict[str, float]]:
    summary = {}
    for way in WAYS:
        took = sorted(each for figures in rounds for each in figures[way].milliseconds)
        seconds = sum(figures[way].seconds for figures in rounds)
        summary[way] = {
            "p50": round(statistics.median(took), 3),
            "p99": round(took[int(0.99 * len(took))], 3),
            "ids_per_second": round(ids * len(took) / seconds),
        }
    return summary


def _table(result: dict) -> str:
    lines = [f"{'':9} {'':10} {'p50 ms':>8} {'p99 ms':>8} {'IDs/s':>9}"]
    for each in result["lookups"]:
        threads = f"{each['threads']} thread{'s' if each['threads'] > 1 else ''}"
        lines.append(f"{each['ids']} IDs, {threads}: get is {each['vs_slower_request']} × the slower request")
        for way in WAYS:
            of = each[way]
            lines.append(f"{'':9} {way:10} {of['p50']:8.3f} {of['p99']:8.3f} {of['ids_per_second']:9,}")
    return "\n".join([*lines, f"{result['rows']:,} rows; {result['rounds']} rounds; {result['machine']}"])


if __name__ == "__main__":
    exits.run(main, "benchmarks/lookup")
