"""Predictions for a table of your own: from a CSV file to prediction lines without a cluster, then through HBase.

    .venv/bin/python examples/own_table.py orders.csv order_id paid             without a cluster
    .venv/bin/python examples/own_table.py orders.csv order_id paid 007 008     also through HBase, to two lookups

`order_id` is the column with the unique ID; `paid` is the label, empty where it is not known yet. The second form needs
HBase's Thrift server (`hbase.thrift`). The script writes orders.db, predictions.toml and the folder local.
"""

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import pandas as pd


def make_table(path: Path, record_id: str) -> None:
    """Make a SQLite table of a CSV file. IDs stay text: 007 is not 7. Only an empty field is NULL: "NA" is text."""
    frame = pd.read_csv(path, converters={record_id: str}, keep_default_na=False, na_values=[""]).convert_dtypes()
    with closing(connect(f"{path.stem}.db")) as connection:
        frame.to_sql(path.stem, connection, if_exists="replace", index=False, dtype={record_id: "TEXT PRIMARY KEY"})


def predictions(*arguments: str) -> None:
    """Run a command as in a shell, and stop if it failed."""
    print("$ predictions", *arguments, flush=True)
    code = subprocess.run([sys.executable, "-m", "predictions", *arguments]).returncode
    if code not in (0, 1):  # 1: some records could not be scored, and their rows say why
        raise SystemExit(code)


def main() -> None:
    path, (record_id, label, *ids) = Path(sys.argv[1]), sys.argv[2:]
    make_table(path, record_id)
    if not Path("predictions.toml").exists():  # it may have been edited: features, estimator, params
        predictions("init", f"sqlite:///{path.stem}.db", path.stem, "--id", record_id, "--label", label)
    for stage in ("export", "train", "score --runner local"):
        predictions("--storage", "local", *stage.split())  # the folder local instead of HDFS
    release = max(Path("local", path.stem).iterdir())  # the newest: they are named by their time
    print("The first prediction lines:", *(release / "scored/part-00000").read_text().splitlines()[:3], sep="\n")
    if ids:
        for stage in ("load", "activate"):
            predictions("--storage", "local", stage)
        predictions("get", *ids)


if __name__ == "__main__":
    main()
