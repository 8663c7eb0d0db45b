"""The first settings for a table of one's own: `predictions init`."""

from pathlib import Path

from predictions.errors import InputError
from predictions.settings import DatabaseSettings, load_settings
from predictions.sources import open_database

TEMPLATE = """\
name = {name}

[database]
url   = {url}
table = {table}
id    = {id}                # unique, never NULL

[model]
label     = {label}         # what is predicted; NULL where it is not known yet
features  = [{features}]    # leave out what is not known when a prediction is needed
estimator = "sklearn.ensemble.HistGradientBoosting{kind}"

[hbase]
thrift  = "127.0.0.1:9090"  # HBase's Thrift server
regions = 4

[hadoop]
storage = "webhdfs://127.0.0.1:9870/predictions"  # the NameNode's web address and a folder
{embedded}
[gates]
max_failed = 0.01
"""

EMBEDDED = """\
bin     = {bin}
python  = {python}
"""


def write_settings(path: Path, url: str, table: str, record_id: str, label: str, name: str) -> Path:
    """Write settings for a table, all columns but the ID and the label as features; others than we may not read a URL.

    Raises:
        InputError: the file is there already, or the database, the table or a column is not.
    """
    import json
    import sys

    if path.exists():
        raise InputError(f"{path}: there already; remove it first")
    columns = open_database(DatabaseSettings(url=url, table=table, id=record_id)).columns()
    names = {column.name: column for column in columns}
    for wanted in (record_id, label):
        if wanted not in names:
            raise InputError(f"no column {wanted!r} in {table}; there are {', '.join(names)}")
    engine = Path(__file__).resolve().parents[2] / "hadoop" / "bin"
    embedded = EMBEDDED.format(bin=json.dumps(str(engine)), python=json.dumps(sys.executable))
    path.touch(0o666 if url.startswith("sqlite:///") else 0o600)  # others may have a password
    quoted = json.dumps  # a TOML basic string is written as in JSON
    path.write_text(
        TEMPLATE.format(
            name=quoted(name),
            url=quoted(url),
            table=quoted(table),
            id=quoted(record_id),
            label=quoted(label),
            features=", ".join(quoted(column) for column in names if column not in (record_id, label)),
            kind="Regressor" if names[label].type == "real" else "Classifier",
            embedded=embedded if engine.is_dir() else "",
        )
    )
    try:
        load_settings(path)
    except InputError:
        path.unlink()
        raise
    return path
