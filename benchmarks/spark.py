"""Do the same work with Spark: from record lines to prediction lines sorted by row key, by `mapInPandas` on `local[2]`.

    python spark.py ENGINE MODEL.JSON SCORED LINES OUTPUT [ARROW_ROWS]

ENGINE is what computes the probabilities: `scikit-learn`, or `compiled`, this package's tables.

It is written as a Spark expert would: the JVM computes what it can (the row key, the types, joining the fields), a
worker loads the model once per partition and takes Arrow batches, and the records are sorted before they are scored.
`orderBy` reads its input twice, first to find the ranges: after `mapInPandas`, every record would be scored twice, or
the predictions would have to be persisted in between.

It needs pyspark, and from this package the model's files and, for `compiled`, the module that reads them. It assumes
that no field needs escapes or is NULL, which is true of the flights.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

ARROW_ROWS = "50000"
PARTS = "4"  # the number of regions in the flights' settings
SETTINGS = {
    "spark.driver.memory": "4g",  # of the JVM; in local mode the driver does the work
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.shuffle.partitions": PARTS,
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


def main(engine: str, manifest: str, scored: str, lines: str, output: str, arrow_rows: str = ARROW_ROWS) -> None:
    model = json.loads(Path(manifest).read_text())
    names, classes = names_and_classes(model)
    load = {"scikit-learn": scikit_learn, "compiled": compiled}[engine]

    def predict(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        probabilities = load(Path(manifest), model)
        for batch in batches:
            predictions, shares = most_probable(probabilities(batch[names]), classes)
            yield pd.DataFrame(
                {
                    "key": batch["key"],
                    "prediction": predictions,
                    "probability": [f"{share:.7g}" for share in shares.tolist()],
                    "record": [xxhash.xxh3_64_hexdigest(fields.encode()) for fields in batch["fields"]],
                }
            )

    spark = start(arrow_rows)
    records = read(spark, lines, names)
    prefix = f.lpad(f.lower(f.hex(f.shiftright(f.crc32(f.encode("id", "UTF-8")), 16))), 4, "0")
    records = records.select(
        f.concat(prefix, f.lit(":"), "id").alias("key"),
        f.concat_ws("\t", *names).alias("fields"),
        *typed(model),
    )
    predictions = records.orderBy("key").mapInPandas(
        predict, "key string, prediction string, probability string, record string"
    )
    columns = ("key", "prediction", "probability", "record", f.lit(scored), f.lit("\\N"))
    predictions.select(f.concat_ws("\t", *columns)).write.text(output)
    spark.stop()


def start(arrow_rows: str = ARROW_ROWS) -> SparkSession:
    """Start Spark in this process."""
    builder = SparkSession.builder.master("local[2]").config("spark.sql.execution.arrow.maxRecordsPerBatch", arrow_rows)
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def read(spark: SparkSession, lines: str, names: list[str]) -> DataFrame:
    """Return the record lines with `id`, the features and `label`, as text."""
    schema = ", ".join(f"`{name}` string" for name in ["id", *names, "label"])
    return spark.read.csv(lines, schema=schema, sep="\t", quote="")


def names_and_classes(model: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """Return the names of a model's features, and its classes as text."""
    return [column["name"] for column in model["features"]], np.array(list(map(str, model["classes"])))


def typed(model: dict[str, Any]) -> list[Column]:
    """Return a model's features in their types."""
    types = {column["name"]: "string" if column["type"] == "text" else "double" for column in model["features"]}
    return [f.col(name).cast(type_).alias(name) for name, type_ in types.items()]


def most_probable(shares: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the most probable class of each record, and its probability."""
    best = shares.argmax(axis=1)
    return classes[best], shares[np.arange(len(best)), best]


def scikit_learn(manifest: Path, _model: dict[str, Any]) -> Callable[[pd.DataFrame], np.ndarray]:
    """Return what computes the probabilities of a batch, by scikit-learn."""
    import skops.io

    path = manifest.with_name("model.skops")
    return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path)).predict_proba


def compiled(manifest: Path, model: dict[str, Any]) -> Callable[[pd.DataFrame], np.ndarray]:
    """Return what computes the probabilities of a batch, by the compiled model."""
    from predictions.scoring.compiled import NumberColumn, load

    tables = load(manifest.with_name("model.npz"), model["compiled"], model["sha256"])

    def bins(batch: pd.DataFrame) -> Iterator[np.ndarray]:
        for index, column in enumerate(tables.columns):
            values = batch.iloc[:, index]
            if isinstance(column, NumberColumn):
                yield tables.bins_of_numbers(index, values.to_numpy(np.float64))
            else:
                yield tables.bins_of_categories(index, values.tolist())

    return lambda batch: tables.predict(list(bins(batch)))


if __name__ == "__main__":
    main(*sys.argv[1:])
