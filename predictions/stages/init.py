"""Write the first settings file for a table of the user's database (`predictions init`)."""

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
    """Write settings for a table, with all columns except the ID and the label as features.

    The URL may hold a password, so only the file's owner may read it, unless it is a URL of SQLite.

    Raises:
        InputError: the file exists already, or the database, the table or a column is missing.
    """
    import json
    import sys

    if path.exists():
        raise InputError(f"{path}: the file exists already; remove it first")
    columns = open_database(DatabaseSettings(url=url, table=table, id=record_id)).columns()
    by_name = {column.name: column for column in columns}
    for required in (record_id, label):
        if required not in by_name:
            raise InputError(f"no column {required!r} in {table}; the columns are {', '.join(by_name)}")
    engine = Path(__file__).resolve().parents[2] / "hadoop" / "bin"
    embedded = EMBEDDED.format(bin=json.dumps(str(engine)), python=json.dumps(sys.executable))
    path.touch(0o666 if url.startswith("sqlite:///") else 0o600)  # a URL of SQLite holds no password
    quoted = json.dumps  # TOML writes a basic string as JSON does
    path.write_text(
        TEMPLATE.format(
            name=quoted(name),
            url=quoted(url),
            table=quoted(table),
            id=quoted(record_id),
            label=quoted(label),
            features=", ".join(quoted(column) for column in by_name if column not in (record_id, label)),
            kind="Regressor" if by_name[label].type == "real" else "Classifier",
            embedded=embedded if engine.is_dir() else "",
        )
    )
    try:
        load_settings(path)
    except InputError:
        path.unlink()
        raise
    return path
