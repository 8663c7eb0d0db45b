"""Put predictions next to the rows of a pandas data frame.

    .venv/bin/python examples/join.py orders.csv order_id   in the folder with predictions.toml

The CSV file is any table that has record IDs in a column, here `order_id`.
"""

import sys

import pandas as pd

from predictions import Client


def main() -> None:
    path, column = sys.argv[1:]
    frame = pd.read_csv(path, converters={column: str})  # IDs stay text: 007 is not 7
    with Client() as client:
        joined = client.join(frame, on=column)

    print(joined.drop(columns=["release", "scored", "age", "source"]).to_string(index=False))

    fresh = joined[joined["status"] == "fresh"]  # the others have no prediction, or that of an earlier state
    print(f"\n{len(fresh)} of {len(joined)} rows have a fresh prediction")
    for label, rows in fresh.groupby("prediction"):
        print(f"{label}: {len(rows)} rows, mean probability {rows['probability'].mean():.3f}")


if __name__ == "__main__":
    main()
