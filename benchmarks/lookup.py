"""Compare a lookup with the two requests that it makes: `Client.get` and `get_many`, plain HappyBase, plain SQL.

All ways are measured in one run, on 336,776 flights and their predictions in a table with four regions on the embedded
cluster (which is started, and stopped again, unless it is running).

- `get`: `Client.get` for one ID, `get_many` for more: the pointer, the record, the prediction, and their comparison.
- `happybase`: `table.row` for one row key, `table.rows` for more, on a plain HappyBase connection.
- `database`: `SELECT *` by primary key, on an open connection, with rows as tuples.

Then wide ones, by the client alone: `get_many` of 100,000 IDs, and `predictions get --json`, as a process from its
start to its end, with 100,000 and with a million IDs on standard input. The peak memory of both shows whether it grows.

Each thread of the plain ways has its own connection. All ways look up the same random IDs. They are measured in turn,
round after round, each round beginning with another way. A ratio is taken within each round.
"""

import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
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

from benchmarks.flights import CHECKOUT, ROWS, SETTINGS, VAR, machine, make_release, running_cluster, score_local
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
LOOKUPS = {1: 2_000, 10: 800, 100: 240, 1_000: 48}  # lookups of a round, by the number of IDs of each
THREADS = (1, 8)
WAYS = ("get", "happybase", "database")
MANY = 100_000  # IDs of one `get_many`
STREAMED = (100_000, 1_000_000)  # IDs on standard input

Look = Callable[[Sequence[str]], int]  # looks up IDs, and returns how many were found


class Figures(NamedTuple):
    """The times of a round: milliseconds of each lookup, and seconds in total."""

    milliseconds: list[float]
    seconds: float


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Number of rounds, each of all ways."
)
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
        # The longest lookups first: they warm HBase up, on which the shortest depend most.
        pairs = [(ids, threads) for threads in THREADS for ids in sorted(LOOKUPS, reverse=True)]
        measured = {(ids, threads): _measure(makers, ids, threads, rounds) for ids, threads in pairs}
        wide = {"get_many": {"ids": MANY, "ids_per_second": _many(client)}}
        wide |= {f"stdin {ids}": _streamed(Path(local), settings, ids) for ids in STREAMED}
    result = {
        "ratios": {"get_vs_slower_request": round(_ratio(measured[1, 1]), 3)},
        "lookups": [
            {
                "ids": ids,
                "threads": threads,
                "vs_slower_request": round(_ratio(rounds_of), 3),
                **_summary(rounds_of, ids),
            }
            for (ids, threads), rounds_of in sorted(measured.items(), key=lambda item: item[0][::-1])
        ],
        "wide": wide,
        "rows": ROWS,
        "rounds": rounds,
        "machine": machine(),
    }
    print(json.dumps(result) if as_json else _table(result))


@contextmanager
def _served(local: Path, thrift: int) -> Iterator[tuple[Settings, str]]:
    """Provide the settings of the flights with a served release, and its table's name; removed at the end."""
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
    """Return the figures of each way, round by round."""
    measured = []
    for number in range(-1, rounds):  # the first round is a warm-up
        chance = random.Random(number)
        wanted = [[str(chance.randint(1, ROWS)) for _id in range(ids)] for _lookup in range(LOOKUPS[ids])]
        shift = number % len(WAYS)
        measured.append({way: _round(makers[way], wanted, threads) for way in (*WAYS[shift:], *WAYS[:shift])})
    return measured[1:]


def _round(make: Callable[[], Look], wanted: Sequence[Sequence[str]], threads: int) -> Figures:
    start = threading.Barrier(threads + 1)

    def run(part: Sequence[Sequence[str]]) -> list[float]:
        look, milliseconds = make(), []
        look(part[0])
        start.wait()
        for ids in part:
            began = time.perf_counter()
            found = look(ids)
            milliseconds.append(1e3 * (time.perf_counter() - began))
            if found != len(set(ids)) and found != len(ids):
                raise click.ClickException(f"{found} of {len(ids)} records were found")
        return milliseconds

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(run, wanted[number::threads]) for number in range(threads)]
        start.wait()
        began = time.perf_counter()
        milliseconds = [lookup for future in running for lookup in future.result()]
        return Figures(milliseconds, time.perf_counter() - began)


def _many(client: Client) -> int:
    """Return the IDs a second of one long list."""
    ids = _random_ids(MANY)
    began = time.perf_counter()
    answers = client.get_many(ids)
    seconds = time.perf_counter() - began
    if any(answer.status != "fresh" for answer in answers):
        raise click.ClickException("not all records were found")
    return round(MANY / seconds)


def _streamed(local: Path, settings: Settings, ids: int) -> dict[str, float]:
    """Return the IDs a second of `predictions get --json`, and its peak memory in MB."""
    file = local / SETTINGS.name
    text = SETTINGS.read_text().replace('name = "flights"', f'name = "{NAME}"').replace("../../", f"{CHECKOUT}/")
    file.write_text(text)
    (local / "ids").write_text("".join(f"{record_id}\n" for record_id in _random_ids(ids)))
    command = [sys.executable, "-m", "predictions", "--settings", file, "get", "--json"]
    environment = {**os.environ, "PREDICTIONS_HBASE_THRIFT": settings.hbase.thrift}
    with open(local / "ids", "rb") as stdin, open(local / "answers", "wb") as stdout:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, env=environment)
        _process_id, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    with open(local / "answers", "rb") as answers:
        fresh = sum(b'"status": "fresh"' in line for line in answers)
    if process.returncode or fresh != ids:
        raise click.ClickException(f"exit code {process.returncode}, {fresh} of {ids} records were found")
    return {"ids": ids, "ids_per_second": round(ids / seconds), "peak_mb": round((usage.ru_maxrss << 10) / 1e6)}


def _random_ids(number: int) -> list[str]:
    chance = random.Random(number)
    return [str(chance.randint(1, ROWS)) for _id in range(number)]


def _ratio(rounds: list[dict[str, Figures]]) -> float:
    """Return the median lookup over the median of the slower bare request, as the median of the rounds."""
    medians = [{way: statistics.median(figures.milliseconds) for way, figures in ways.items()} for ways in rounds]
    return statistics.median(ways["get"] / max(ways["happybase"], ways["database"]) for ways in medians)


def _summary(rounds: list[dict[str, Figures]], ids: int) -> dict[str, dict[str, float]]:
    summary = {}
    for way in WAYS:
        times = sorted(lookup for figures in rounds for lookup in figures[way].milliseconds)
        seconds = sum(figures[way].seconds for figures in rounds)
        summary[way] = {
            "p50": round(statistics.median(times), 3),
            "p99": round(times[int(0.99 * len(times))], 3),
            "ids_per_second": round(ids * len(times) / seconds),
        }
    return summary


def _table(result: dict) -> str:
    lines = [f"{'':9} {'':10} {'p50 ms':>8} {'p99 ms':>8} {'IDs/s':>9}"]
    for lookup in result["lookups"]:
        threads = f"{lookup['threads']} thread{'s' if lookup['threads'] > 1 else ''}"
        lines.append(f"{lookup['ids']} IDs, {threads}: get is {lookup['vs_slower_request']} × the slower request")
        for way in WAYS:
            figures = lookup[way]
            speed = f"{figures['ids_per_second']:9,}"
            lines.append(f"{'':9} {way:10} {figures['p50']:8.3f} {figures['p99']:8.3f} {speed}")
    for name, figures in result["wide"].items():
        memory = f", peak memory {figures['peak_mb']} MB" if "peak_mb" in figures else ""
        lines.append(f"{name}: {figures['ids_per_second']:,} IDs/s{memory}")
    return "\n".join([*lines, f"{result['rows']:,} rows; {result['rounds']} rounds; {result['machine']}"])


if __name__ == "__main__":
    exits.run(main, "benchmarks/lookup")
