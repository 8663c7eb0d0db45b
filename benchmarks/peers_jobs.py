"""What stands in for this package in `benchmarks/peers`: each step as a process, in an environment of its own.

    python peers_jobs.py spark MODEL.JSON SCORED LINES OUTPUT
    python peers_jobs.py happybase PORT TABLE OUTPUT
    python peers_jobs.py feast PORT VIEW OUTPUT

`spark` scores record lines by `mapInPandas` with scikit-learn, and writes Parquet files with the record ID, the
prediction, its probability and the time SCORED. It needs neither row keys nor an order, so it does not sort.

`happybase` puts them into an HBase table: a plain loop for each core, with batches.

`feast` is Feast as its documentation says: a feature view on the Parquet files, `apply`, and `materialize` into its
HBase store. Its default engine, the local one, writes all rows by one request unless it gets a size of batches.
"""

import json
import multiprocessing
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from feast import FeatureStore

HOST = "127.0.0.1"
BATCH_ROWS = 10_000  # of a request: Feast's example of `online_write_batch_size`
FAMILY = "p"
FEATURES = ("prediction", "probability")


def score(manifest: str, scored: str, lines: str, output: str) -> None:
    from pyspark.sql import functions as f

    from benchmarks.spark import most_probable, names_and_classes, read, scikit_learn, start, typed

    model = json.loads(Path(manifest).read_text())
    names, classes = names_and_classes(model)

    def predict(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        probabilities = scikit_learn(Path(manifest), model)
        for batch in batches:
            predictions, shares = most_probable(probabilities(batch[names]), classes)
            yield pd.DataFrame({"record_id": batch["id"], "prediction": predictions, "probability": shares})

    session = start()
    session.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")  # Feast's dask cannot read INT96
    records = read(session, lines, names).select("id", *typed(model))
    predictions = records.mapInPandas(predict, "record_id string, prediction string, probability double")
    time = f.timestamp_millis(f.lit(int(scored)))
    predictions.withColumn("event_timestamp", time).write.parquet(output)
    session.stop()


def put(port: str, table: str, output: str) -> None:
    files = sorted(Path(output).glob("*.parquet"))
    with multiprocessing.Pool() as pool:
        pool.map(partial(_put_file, int(port), table), files, chunksize=1)


def _put_file(port: int, table: str, path: Path) -> None:
    import happybase
    from pyarrow import parquet

    from predictions.formats.row_key import row_keys

    columns = [f"{FAMILY}:{name}".encode() for name in FEATURES]
    loop = happybase.Connection(HOST, port).table(table)
    for rows in parquet.ParquetFile(path).iter_batches(BATCH_ROWS, columns=["record_id", *FEATURES]):
        ids, predictions, probabilities = (column.to_pylist() for column in rows.columns)
        with loop.batch() as batch:
            for key, prediction, probability in zip(
                row_keys([record_id.encode() for record_id in ids]), predictions, probabilities, strict=True
            ):
                values = (prediction.encode(), b"%.7g" % probability)
                batch.put(key, dict(zip(columns, values, strict=True)))


def materialize(port: str, view: str, output: str) -> None:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, String

    record = Entity(name="record", join_keys=["record_id"], value_type=ValueType.STRING)
    source = FileSource(path=output, timestamp_field="event_timestamp")
    schema = [Field(name="record_id", dtype=String), Field(name="prediction", dtype=String)]
    schema.append(Field(name="probability", dtype=Float64))
    features = FeatureView(name=view, entities=[record], schema=schema, source=source)
    store = feast_store(port, output)
    store.apply([record, features])
    [scored] = pd.read_parquet(output, columns=["event_timestamp"])["event_timestamp"].unique()
    store.materialize(scored - timedelta(hours=1), scored + timedelta(hours=1))


def feast_store(port: str, output: str) -> "FeatureStore":
    """Return Feast's feature store, whose registry is a file beside the folder of the predictions."""
    from feast import FeatureStore, RepoConfig

    return FeatureStore(
        config=RepoConfig(
            project="default",  # the namespace in HBase, which Feast does not make
            provider="local",
            registry=f"{output}.registry",
            offline_store={"type": "dask"},
            online_store={"type": "hbase", "host": HOST, "port": port},
            materialization={"online_write_batch_size": BATCH_ROWS},
            entity_key_serialization_version=3,
        )
    )


JOBS = {"spark": score, "happybase": put, "feast": materialize}

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
