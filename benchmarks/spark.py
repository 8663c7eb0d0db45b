"""Do the same work with Spark: from record lines to prediction lines sorted by row key, by `mapInPandas` on `local[2]`.

    python spark.py MODEL.JSON SCORED LINES OUTPUT [ARROW_ROWS]

It is written as a Spark expert would: the JVM computes what it can (the row key, the types, joining the fields), a
worker loads the model once per partition and takes Arrow batches, and the records are sorted before they are scored.
`orderBy` reads its input twice, first to find the ranges: after `mapInPandas`, every record would be scored twice, or
the predictions would have to be persisted in between.

It needs pyspark, and from this package only the model's files. It assumes that no field needs escapes or is NULL, which
is true of the flights.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import skops.io
import xxhash
from pyspark.sql import SparkSession
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


def main(manifest: str, scored: str, lines: str, output: str, arrow_rows: str = ARROW_ROWS) -> None:
    features = json.loads(Path(manifest).read_text())["features"]
    names = [column["name"] for column in features]
    types = ["string" if column["type"] == "text" else "double" for column in features]
    model = Path(manifest).with_name("model.skops")

    def predict(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        estimator = skops.io.load(model, trusted=skops.io.get_untrusted_types(file=model))
        for batch in batches:
            shares = estimator.predict_proba(batch[names])
            best = shares.argmax(axis=1)
            yield pd.DataFrame(
                {
                    "key": batch["key"],
                    "prediction": estimator.classes_[best].astype(str),
                    "probability": [f"{share:.7g}" for share in shares[np.arange(len(best)), best].tolist()],
                    "record": [xxhash.xxh3_64_hexdigest(fields.encode()) for fields in batch["fields"]],
                }
            )

    builder = SparkSession.builder.master("local[2]").config("spark.sql.execution.arrow.maxRecordsPerBatch", arrow_rows)
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    schema = ", ".join(f"`{name}` string" for name in ["id", *names, "label"])
    records = spark.read.csv(lines, schema=schema, sep="\t", quote="")
    prefix = f.lpad(f.lower(f.hex(f.shiftright(f.crc32(f.encode("id", "UTF-8")), 16))), 4, "0")
    records = records.select(
        f.concat(prefix, f.lit(":"), "id").alias("key"),
        f.concat_ws("\t", *names).alias("fields"),
        *(f.col(name).cast(type_).alias(name) for name, type_ in zip(names, types, strict=True)),
    )
    predictions = records.orderBy("key").mapInPandas(
        predict, "key string, prediction string, probability string, record string"
    )
    columns = ("key", "prediction", "probability", "record", f.lit(scored), f.lit("\\N"))
    predictions.select(f.concat_ws("\t", *columns)).write.text(output)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
