"""Measure what a batch of predictions does to the database: written back into its table, or made by this package.

A PostgreSQL (default settings except for `shared_buffers`, so with fsync) has one table with copies of the flights,
larger than `shared_buffers`, and three indexes, one of them on a column that the application often updates. It has a
CPU of its own, together with pgbench, which is the application: random records are read by primary key, and a few
updated, at given rates. Everything else has another CPU, as it would be on servers of its own: a streaming replica,
what writes the predictions, this package and its cluster. The disk and the memory are shared.

In turn, round after round, each of which begins with another one:

- `nothing` else happens;
- `write_back`: predictions for every record are written into a new column, as an expert would do it. They exist before,
  in a file, sorted by ID. ALTER TABLE adds the column, which rewrites nothing; it gives up after waiting 0.1 seconds
  for its lock and tries again a second later, since every read waits behind it. COPY fills a temporary table, which
  needs no WAL and then gets a primary key. UPDATE … FROM goes through the table in batches by key range, each a
  transaction. VACUUM runs after every tenth of the table, so that the next tenth finds free space.
- `at_once`: the same without that knowledge: ALTER TABLE waits for its lock as long as it takes, COPY fills an
  ordinary table, and one UPDATE changes all records;
- `package`: `predictions run`, with this database and the embedded cluster (which is started, and stopped again, unless
  it is running; this is not measured): export, training, scoring by Hadoop, bulk load into HBase, activation.

Each phase has a new database, copied from the same template and read into the system's memory, with a checkpoint
before. In its first seconds (`--long-read`), one transaction has the table open, as a report or a dump would: ALTER
TABLE has to wait for it.

A request's time begins when it was due, not when a connection was free for it (an open loop). Figures are those of a
whole phase and of its steps; in `package`, the export is the only step that uses the database. The interval of a figure
is that of the rounds' values. p999 needs 10,000 requests.

WAL is the difference of `pg_current_wal_lsn()`; the updates write some too, as long as a phase lasts. Sizes, dead rows
and free space are those of `pgstattuple`, before and after; `blocks read` are those of the table and its indexes that
`shared_buffers` did not hold. The locks on the table, held or waited for, the longest wait for each mode and the
replica's lag are sampled fifty times a second. While ACCESS EXCLUSIVE is held or waited for, no read begins; locks on
rows are not seen here, but in the updates' times.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.batches import Package, Step, write_back, write_back_at_once
from benchmarks.cores import Cores, confined, on_cpu
from benchmarks.database import Database, Watch
from benchmarks.flights import VAR, cluster_processes, machine, running_cluster
from benchmarks.latency import by_second, due, summary
from benchmarks.plots import plot_option
from benchmarks.reads import READ, UPDATE, Paced
from benchmarks.writeback_plot import draw
from examples.postgresql import running
from predictions.cli import exits
from predictions.progress import say

PHASES = {
    "nothing": "nothing else",
    "write_back": "written back in batches",
    "at_once": "written back at once",
    "package": "this package",
}
KEPT_WAL = "4GB"  # for the replica, which has no replication slot
LATENCIES = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
FIGURES = {  # of a phase: their names in the result, the heading, and the digits to show
    "wal_mb": ("WAL, MB", 1),
    "wal_mb_per_second": ("WAL a second, MB", 2),
    "replica_lag_mb": ("replica lags, MB", 1),
    "replica_lag_seconds": ("replica lags, s", 2),
    "table_growth_mb": ("table grows, MB", 1),
    "index_growth_mb": ("indexes grow, MB", 1),
    "bloat_percent": ("dead or free in the table, %", 1),
    "dead_rows": ("dead rows left", 0),
    "blocks_read": ("blocks read", 0),
    "locked_seconds": ("table locked for reads, s", 2),
    "longest_wait_ms": ("longest wait for a lock, ms", 0),
    "servers_busy_percent": ("PostgreSQL's CPU busy, %", 0),
    "others_busy_percent": ("other CPU busy, %", 0),
}
MEGABYTE = 1e6
Work = Callable[[str], list[Step]]  # does a phase's work in the database of a URL, and returns its steps
Figures = dict[str, Any]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Number of rounds.")
@click.option(
    "--copies", type=click.IntRange(1), default=2, show_default=True, help="Copies of the flights, under new IDs."
)
@click.option("--shared-buffers", default="64MB", show_default=True, help="PostgreSQL's `shared_buffers`.")
@click.option("--rate", type=click.IntRange(1), default=1000, show_default=True, help="Reads per second.")
@click.option("--update-rate", type=click.IntRange(1), default=50, show_default=True, help="Updates per second.")
@click.option(
    "--seconds", type=click.IntRange(1), default=20, show_default=True, help="Seconds of the phase `nothing`."
)
@click.option(
    "--long-read",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="Seconds that a transaction keeps the table open.",
)
@click.option(
    "--export-rate",
    type=click.FloatRange(1),
    help="Records per second that `package` reads, at most; default: no limit.",
)
@plot_option
def main(
    as_json: bool,
    rounds: int,
    copies: int,
    shared_buffers: str,
    rate: int,
    update_rate: int,
    seconds: int,
    long_read: float,
    export_rate: float | None,
    plot: Path | None,
) -> None:
    """Measure what a batch of predictions does to the database and its readers."""
    VAR.mkdir(exist_ok=True)
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="writeback.", dir=VAR) as name, running_cluster() as cluster:
        local = Path(name)
        local.chmod(0o755)  # PostgreSQL, which does not run as root, must enter; it protects its own files
        daemons = cluster_processes(cluster).values()
        with (
            confined(daemons, cores.others),
            on_cpu(cores.others),
            _database(local, cores, copies, shared_buffers) as database,
        ):
            predictions, package = local / "predictions", Package(cluster, export_rate)
            database.write_predictions(predictions)

            def idle(_url: str) -> list[Step]:
                time.sleep(seconds)
                return []

            works: dict[str, Work] = {
                "nothing": idle,
                "write_back": lambda url: write_back(url, predictions),
                "at_once": lambda url: write_back_at_once(url, predictions),
                "package": package.run,
            }
            measure = partial(_measure, database, cores, (rate, update_rate), long_read)
            measured = []
            for number in range(rounds):
                folder = local / f"round-{number}"
                folder.mkdir()
                with package.removed():
                    measured.append({phase: measure(folder / phase, works[phase]) for phase in _turn(number)})
                say(f"round {number + 1} of {rounds} is done")
    result = {
        "rows": database.rows,
        "shared_buffers": shared_buffers,
        "rate": rate,
        "update_rate": update_rate,
        "long_read_seconds": long_read,
        "export_rate": export_rate,
        "phases": {phase: _spreads([figures[phase] for figures in measured]) for phase in PHASES},
        "rounds": measured,
        "cpus": str(cores),
        "machine": f"{database.version}, {machine()}",
    }
    if plot:
        draw(result, plot)
    print(json.dumps(result) if as_json else _table(result))


@contextmanager
def _database(local: Path, cores: Cores, copies: int, shared_buffers: str) -> Iterator[Database]:
    """Run PostgreSQL with the flights on its CPU, and a replica on the other one."""
    with ExitStack() as stack:
        with on_cpu(cores.servers):
            folder, settings = local / "postgresql", {"shared_buffers": shared_buffers, "wal_keep_size": KEPT_WAL}
            server = stack.enter_context(running(folder, **settings))
        database = Database.make(server.url, copies)
        replica = server.copy(local / "replica", shared_buffers=shared_buffers)
        stack.callback(replica.remove)
        yield database


def _turn(number: int) -> list[str]:
    """Return the phases in the order of a round."""
    phases, first = list(PHASES), number % len(PHASES)
    return phases[first:] + phases[:first]


def _measure(
    database: Database, cores: Cores, rates: tuple[int, int], long_read: float, folder: Path, work: Work
) -> Figures:
    """Do the work in a new copy of the database, and return the figures of the phase."""
    folder.mkdir()
    with database.copy() as url, ExitStack() as stack:
        with on_cpu(cores.servers):
            reads, updates = (
                stack.enter_context(Paced(url, script, database.rows, rate, folder / name))
                for name, script, rate in (("reads", READ, rates[0]), ("updates", UPDATE, rates[1]))
            )
        watch = stack.enter_context(Watch(url, "flights"))
        stack.enter_context(database.long_read(url, long_read))
        psutil.cpu_percent(percpu=True)
        begin = time.time()
        steps = work(url)
        end = time.time()
        busy = psutil.cpu_percent(percpu=True)
    all_reads = reads.answered()
    return {
        "seconds": round(end - begin, 2),
        "reads": summary(due(all_reads, (begin, end))),
        "updates": summary(due(updates.answered(), (begin, end))),
        "steps": {
            step.name: {
                "begin": round(step.begin - begin, 2),
                "seconds": round(step.end - step.begin, 2),
                **summary(due(all_reads, (step.begin, step.end))),
            }
            for step in steps
        },
        "busy_percent": {"servers": busy[cores.servers], "others": busy[cores.others]},
        **watch.measurements(),
        "by_second": by_second(all_reads, begin, end),
    }


def _spreads(rounds: list[Figures]) -> Figures:
    """Return the median, the least and the largest value of each figure over the rounds of a phase."""
    spreads: Figures = {
        "seconds": _spread([figures["seconds"] for figures in rounds]),
        **{name: _spread([_figures(figures)[name] for figures in rounds]) for name in FIGURES},
    }
    for kind in ("reads", "updates"):
        spreads[kind] = _latencies([figures[kind] for figures in rounds])
    spreads["steps"] = {
        name: {
            "seconds": _spread([figures["steps"][name]["seconds"] for figures in rounds]),
            **_latencies([figures["steps"][name] for figures in rounds]),
        }
        for name in rounds[0]["steps"]
    }
    return spreads


def _latencies(rounds: list[Figures]) -> Figures:
    samples = sum(figures["samples"] for figures in rounds)
    return {"samples": samples, **{name: _spread([figures[name] for figures in rounds]) for name in LATENCIES}}


def _spread(values: list[float | None]) -> list[float] | None:
    """Return the median, the least and the largest value; None if one is missing."""
    numbers = [value for value in values if value is not None]
    return [statistics.median(numbers), min(numbers), max(numbers)] if len(numbers) == len(values) else None


def _figures(figures: Figures) -> dict[str, float]:
    """Return the single numbers of a phase of one round."""
    before, after = figures["before"], figures["after"]
    return {
        "wal_mb": figures["wal_bytes"] / MEGABYTE,
        "wal_mb_per_second": figures["wal_bytes"] / MEGABYTE / figures["seconds"],
        "replica_lag_mb": figures["replica_lag"]["bytes"] / MEGABYTE,
        "replica_lag_seconds": figures["replica_lag"]["seconds"],
        "table_growth_mb": (after["table_bytes"] - before["table_bytes"]) / MEGABYTE,
        "index_growth_mb": (after["index_bytes"] - before["index_bytes"]) / MEGABYTE,
        "bloat_percent": 100 * (after["dead_bytes"] + after["free_bytes"]) / after["table_bytes"],
        "dead_rows": after["dead_rows"],
        "blocks_read": figures["blocks_read"],
        "locked_seconds": figures["locked_seconds"].get("AccessExclusiveLock", 0.0),
        "longest_wait_ms": max(figures["longest_wait_ms"].values(), default=0),
        "servers_busy_percent": figures["busy_percent"]["servers"],
        "others_busy_percent": figures["busy_percent"]["others"],
    }


def _table(result: dict[str, Any]) -> str:
    phases, before = result["phases"], result["rounds"][0]["nothing"]["before"]
    table, index = before["table_bytes"] / MEGABYTE, before["index_bytes"] / MEGABYTE
    lines = [
        f"{result['rows']:,} records: table {table:.0f} MB, indexes {index:.0f} MB, shared_buffers "
        f"{result['shared_buffers']}; a second: {result['rate']:,} reads, {result['update_rate']:,} updates",
        f"{result['machine']}; {result['cpus']}",
        f"median (least to largest) of {len(result['rounds'])} rounds; times in ms from when a request was due",
        "",
        f"{'':32}{'seconds':>22}{'p50':>22}{'p99':>22}{'p999':>24}{'longest':>26}{'requests':>10}",
    ]
    for phase, title in PHASES.items():
        figures = phases[phase]
        lines.append(_line(title, figures["seconds"], figures["reads"]))
        lines.append(_line("  updates", None, figures["updates"]))
        lines += [_line(f"  {name}", step["seconds"], step) for name, step in figures["steps"].items()]
    lines += ["", f"{'':32}" + "".join(f"{title:>28}" for title in PHASES.values())]
    for name, (title, digits) in FIGURES.items():
        lines.append(f"{title:32}" + "".join(f"{_shown(phases[phase][name], digits):>28}" for phase in PHASES))
    return "\n".join(lines)


def _line(title: str, seconds: list[float] | None, figures: Figures) -> str:
    widths = zip(LATENCIES, (22, 22, 24, 26), strict=True)
    latencies = "".join(f"{_shown(figures[name], 2):>{width}}" for name, width in widths)
    return f"{title:32}{_shown(seconds, 1):>22}{latencies}{figures['samples']:10,}"


def _shown(spread: list[float] | None, digits: int) -> str:
    if spread is None:
        return "–"
    middle, least, largest = (f"{value:,.{digits}f}" for value in spread)
    return middle if least == largest else f"{middle} ({least}–{largest})"


if __name__ == "__main__":
    exits.run(main, "benchmarks/writeback")
