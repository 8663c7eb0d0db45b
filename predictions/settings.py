"""Read the settings from `predictions.toml` and the environment, and check all of them before anything runs.

An environment variable overrides the file. Its name is `PREDICTIONS_`, the table and the key:
`PREDICTIONS_HBASE_THRIFT` is `thrift` of `[hbase]`. A relative path in the file is relative to the file, in a variable
to the working directory.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from predictions.errors import InputError
from predictions.hbase.server import Server

FILE_NAME = "predictions.toml"
RUNNERS = ("pipe", "local", "hadoop")  # `score --runner`
VIAS = ("hfiles", "puts")  # `load --via`
LOADERS = ("local", "hadoop")  # `load --runner`, with puts
FILE, REGISTRY, RELEASE = "file", "models", "release"  # what `model.from` begins with
_PREFIX = "PREDICTIONS_"
TOKEN_VARIABLE = f"{_PREFIX}TOKEN"  # the token of `predictions serve`: a secret, so it is no setting


def _check_address(address: str) -> str:
    host_and_port = re.fullmatch(r"[^\s:/]+:(\d{1,5})", address)
    if not host_and_port or int(host_and_port[1]) > 65535:
        raise ValueError("must be HOST:PORT")
    return address


def check_from(origin: str) -> str:
    """Return where a fitted model is, with an absolute path; raise ValueError if it is none of the forms."""
    kind, _colon, rest = origin.partition(":")
    if kind == FILE and rest:
        return f"{FILE}:{os.path.abspath(rest)}"
    if (kind == REGISTRY and re.fullmatch(r"/[^/@]+(@[^/@]+|/\d+)", rest)) or (kind == RELEASE and rest):
        return origin
    raise ValueError("must be file:PATH, models:/NAME@ALIAS, models:/NAME/VERSION or release:ID")


def _absolute_if_path(command: str) -> str:
    return os.path.abspath(command) if "/" in command else command


def _as_text(value: Any) -> Any:
    """Return a number or a boolean of TOML as Hadoop writes it; pydantic checks all other values."""
    return str(value).lower() if isinstance(value, (bool, int, float)) else value


AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Table):
    """`[database]`: the database with the records."""

    url: str = Field(
        description="URL of the database: sqlite:///PATH, postgresql://USER@HOST:PORT/DATABASE or, for others, "
        "SQLAlchemy's DIALECT+DRIVER://USER@HOST:PORT/DATABASE."
    )
    table: str | None = Field(
        default=None,
        description="Table or view with the records, as NAME or (not in SQLite) SCHEMA.NAME, if there is no `query`.",
    )
    query: str | None = Field(
        default=None, description="SELECT statement that returns the records, if there is no `table`."
    )
    id: str = Field(description="Column with the record ID, which is unique and never NULL.")
    timeout: float = Field(
        default=10.0,
        gt=0,
        description="Seconds that a lookup waits for its records, and any command for a connection to the database or "
        "a lock in it.",
    )
    export_timeout: float = Field(
        default=14_400.0,
        gt=0,
        description="Seconds that a statement of the export may take, including the pauses that `--rate` causes.",
    )
    connections: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Number of connections with which the export reads a PostgreSQL table in parallel.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "DatabaseSettings":
        if (self.table is None) == (self.query is None):
            raise ValueError("name either a table (or view) or a query")
        return self


class ModelSettings(_Table):
    """`[model]`: what the model predicts, from which columns, and how it is trained.

    For several labels, there is a table `[[model]]` for each; `features` are those of the first table, and the others
    may leave them out. The environment variables are for a single table.
    """

    label: str = Field(description="Column that is predicted; NULL in a record whose label is not known yet.")
    features: list[str] = Field(
        min_length=1, description="Columns that the model predicts from, each once and without the label."
    )
    from_: Annotated[str, AfterValidator(check_from)] | None = Field(
        default=None,
        alias="from",
        description="A fitted model to take instead of training one: `file:PATH` of a file that skops wrote, "
        "`models:/NAME@ALIAS` or `models:/NAME/VERSION` of the MLflow registry at MLFLOW_TRACKING_URI, or "
        "`release:ID`.",
    )
    trusted: list[str] = Field(
        default=[],
        description="Types of a fitted model, or of your own estimator, to load although they were not reviewed: with "
        "full names, as `predictions model check` lists them.",
    )
    schema_: dict[str, str] = Field(
        default={},
        alias="schema",
        description="Data types of columns of the frame that the model `from` was fitted on, where they are not those "
        'that pandas.read_sql returns, such as `{ age = "Int64" }`.',
    )
    holdout: str | None = Field(
        default=None,
        description="Which records the model `from` was not fitted on, to measure it with: a column that is true or 1 "
        "for them, or a SELECT statement that returns their IDs.",
    )
    packages: list[AbsolutePath] = Field(
        default=[],
        description="Wheels with your own code, pure Python, that the model or `estimator` needs; they go with the "
        "model to all tasks.",
    )
    estimator: str = Field(
        default="sklearn.ensemble.HistGradientBoostingClassifier",
        description="Import path of a regressor, or of a classifier that predicts probabilities, of scikit-learn, "
        "LightGBM or XGBoost; or of any class or function that returns one, or a pipeline that ends with one.",
    )
    params: dict[str, Any] = Field(
        default={}, description="Keyword arguments of the estimator, such as `{ max_iter = 200 }`."
    )
    outputs: list[Literal["probabilities", "contributions"]] = Field(
        default=[],
        description="What is kept beyond the prediction. `probabilities`: of all classes of a classifier, not only of "
        "the predicted one. `contributions`: of a tree or linear model, which features moved the prediction most.",
    )
    top: int | None = Field(
        default=None,
        ge=1,
        description="For `probabilities` of many classes: how many are kept, the most probable ones, in one cell; by "
        "default each class has a cell of its own. For `contributions`: how many features are kept; by default all.",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="For two classes: the second one is predicted if its probability is at least this. By default, the "
        "estimator's own threshold decides, or the more probable class is predicted.",
    )
    sample: int = Field(
        default=1_000_000,
        ge=100,
        description="Largest number of labelled records to train on and measure with; if there are more, a random "
        "sample is drawn.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the random sample and the holdout, and of an estimator whose `params` have no "
        "`random_state`.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> "ModelSettings":
        repeated = sorted({name for name in self.features if self.features.count(name) > 1})
        if repeated:
            raise ValueError(f"features: named twice: {', '.join(repeated)}")
        if self.label in self.features:
            raise ValueError(f"features: {self.label!r} is the label, which cannot be a feature as well")
        if self.top and not self.outputs:
            raise ValueError('top: is for probabilities and contributions; set outputs = ["probabilities"]')
        return self

    @model_validator(mode="after")
    def _fitted_or_trained(self) -> "ModelSettings":
        if self.from_:
            if surplus := sorted({"estimator", "params"} & self.model_fields_set):
                raise ValueError(f"{surplus[0]}: the model `from` is fitted already; remove one of the two")
        elif surplus := sorted({"schema_", "holdout"} & self.model_fields_set):
            raise ValueError(f"{surplus[0].rstrip('_')}: it describes a model that is given with `from`; remove it")
        if unknown := sorted(set(self.schema_) - set(self.features)):
            raise ValueError(f"schema: {unknown[0]} is not one of the features")
        return self


def _tag(value: Any) -> str:
    return SEVERAL if isinstance(value, list) else ONE


ONE, SEVERAL = "one", "several"  # tables of the model; these words are in pydantic's locations of errors
Models = Annotated[
    Annotated[ModelSettings, Tag(ONE)] | Annotated[list[ModelSettings], Tag(SEVERAL), Field(min_length=1)],
    Discriminator(_tag),
]


class HbaseSettings(_Table):
    """`[hbase]`: the HBase that serves the predictions."""

    thrift: Annotated[str, AfterValidator(_check_address)] = Field(
        default="127.0.0.1:9090",
        description="Address (HOST:PORT) of HBase's Thrift server or, with `tls`, of the TLS proxy in front of it.",
    )
    regions: int = Field(
        default=4,
        ge=1,
        le=4096,
        description="Number of regions of each release's table, and of reducers of the scoring job.",
    )
    transport: Literal["buffered", "framed"] = Field(
        default="buffered",
        description="Transport of the Thrift server: `framed` if it was started with -f, -nonblocking or -hsha.",
    )
    protocol: Literal["binary", "compact"] = Field(
        default="binary", description="Protocol of the Thrift server: `compact` if it was started with -c."
    )
    tls: bool = Field(
        default=False,
        description="Connect with TLS, to a TLS proxy: HBase's own Thrift server supports TLS over HTTP only.",
    )
    ca: AbsolutePath | None = Field(
        default=None,
        description="PEM file of the authorities that the TLS proxy's certificate is checked against; by default the "
        "system's.",
    )
    timeout: float = Field(
        default=10.0,
        gt=0,
        description="Seconds that a request may take, including all repetitions, in lookups and in commands other than "
        "those of `load_timeout`.",
    )
    root: str = Field(
        default="/hbase",
        pattern="^/",
        description="Folder of HBase on the HDFS of `hadoop.storage`: the path in `hbase.rootdir`. `load` looks there "
        "for the files that it has handed to HBase; where it may not, it counts rows.",
    )
    load_timeout: float = Field(
        default=600.0,
        gt=0,
        description="Seconds that a request of `load`, `verify` or `releases --clean` may take, including all "
        "repetitions: replacing a dead region server takes HBase minutes.",
    )

    def server(self, loading: bool = False) -> Server:
        """Return what a connection needs to know; with `loading`, `load_timeout` is its time limit."""
        host, _colon, port = self.thrift.rpartition(":")
        timeout_field = "load_timeout" if loading else "timeout"
        return Server(
            host,
            int(port),
            self.transport,
            self.protocol,
            self.tls,
            str(self.ca) if self.ca else None,
            getattr(self, timeout_field),
            f"hbase.{timeout_field}",
        )


class HadoopSettings(_Table):
    """`[hadoop]`: where the files of the releases are, and how jobs run."""

    storage: str = Field(
        default="webhdfs://127.0.0.1:9870/predictions",
        description="Folder for the files of the releases: webhdfs://HOST:PORT/PATH, with the NameNode's web address, "
        "or a local path.",
    )
    bin: AbsolutePath | None = Field(
        default=None, description="Folder with the commands `hadoop` and `hbase`; by default they are on the PATH."
    )
    streaming_jar: AbsolutePath | None = Field(
        default=None, description="Path of Hadoop's streaming JAR; by default the one of the Hadoop installation."
    )
    python: Annotated[str, AfterValidator(_absolute_if_path)] = Field(
        default="python3", description="Python that the tasks run with: a command on every node's PATH, or a path."
    )
    environment: AbsolutePath | None = Field(
        default=None,
        description="Archive with the tasks' libraries, written by `predictions pack`; by default every node has them "
        "installed.",
    )
    properties: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Annotated[str, BeforeValidator(_as_text)]] = Field(
        default={},
        description="Hadoop properties of the jobs, such as their queue; every task can read them, so they must not "
        "hold secrets.",
    )


class GateSettings(_Table):
    """`[gates]`: the limits that a release must keep to be served."""

    max_failed: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest share of the records that may fail to be scored (1 is all of them).",
    )
    min_skill: float = Field(
        default=0.01,
        ge=-1,
        le=1,
        description="Least improvement of the model's loss on the holdout (log loss, or a regressor's root mean "
        "squared error) over a baseline without features, as a share of the baseline's loss.",
    )
    max_gone: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Largest share of the served release's records that the new release may lack.",
    )
    max_psi: float = Field(
        default=0.25,
        ge=0,
        description="Largest population stability index of the predictions, compared with the served release.",
    )
    max_changed: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Largest share of the records of both releases whose predicted class may differ from that in the "
        "served release (classifiers only).",
    )


class RetentionSettings(_Table):
    """`[retention]`: what `releases --clean` keeps."""

    keep: int = Field(
        default=3,
        ge=1,
        description="Number of the newest loaded releases to keep; the served release and the one before it are always "
        "kept.",
    )
    grace_hours: float = Field(
        default=24.0,
        ge=0,
        description="Age in hours from which all other releases, releases that were never loaded and temporary files "
        "are removed.",
    )


class Settings(BaseSettings):
    """All settings of one set of predictions."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="_", env_nested_max_split=1, extra="forbid", frozen=True
    )

    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$",
        description="Name of this set of predictions: of its folder in the storage, and the first part of its tables' "
        "names in HBase.",
    )
    database: DatabaseSettings
    model: Models
    hbase: HbaseSettings = HbaseSettings()
    hadoop: HadoopSettings = HadoopSettings()
    gates: GateSettings = GateSettings()
    retention: RetentionSettings = RetentionSettings()

    @model_validator(mode="before")
    @classmethod
    def _same_features(cls, values: Any) -> Any:
        """Give the tables `[[model]]` without features those of the first one."""
        tables = values.get("model") if isinstance(values, dict) else None
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            return values
        features = tables[0].get("features") if tables else None
        for number, table in enumerate(tables):
            if features is not None and table.get("features", features) != features:
                raise ValueError(
                    f"model.{number}.features: all labels are predicted from the same columns in the same order; leave "
                    "them out in all tables but the first"
                )
        return values | {"model": [{"features": features} | table if features else table for table in tables]}

    @model_validator(mode="after")
    def _distinct_labels(self) -> "Settings":
        labels = [model.label for model in self.models]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"model: several tables have the label {', '.join(repeated)}")
        if both := [label for label in labels if label in self.features]:
            raise ValueError(f"model: features: {', '.join(both)} is a label, which cannot be a feature as well")
        return self

    @property
    def models(self) -> list[ModelSettings]:
        """Return the table `[model]`, or the tables `[[model]]`."""
        return self.model if isinstance(self.model, list) else [self.model]

    @property
    def features(self) -> list[str]:
        """Return the columns that all labels are predicted from."""
        return self.models[0].features

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file (the init settings), and read no other source."""
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """Read and check the settings.

    Args:
        path: the file; by default `predictions.toml` in the working directory.

    Raises:
        InputError: the file is missing or not TOML, or a key is unknown, missing or has a wrong value.
    """
    file = (path or Path(FILE_NAME)).resolve()  # paths are relative to the file that a link leads to
    try:
        values = tomllib.loads(file.read_text())
    except OSError as error:
        advice = "name one with --settings, or write one with `predictions init`"
        raise InputError(f"{path or FILE_NAME}: {error.strerror}; {advice}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path or FILE_NAME}: not TOML: {error}") from error
    _resolve_paths(values, file.parent)
    _check_variables(isinstance(values.get("model"), list))
    try:
        return Settings(**values)
    except SettingsError as error:
        raise InputError(f"{_PREFIX}…: a list or a table in a variable must be JSON: {error}") from error
    except ValidationError as error:
        raise InputError(f"{path or FILE_NAME}: " + "; ".join(map(_describe, error.errors()))) from error


def _check_variables(several: bool) -> None:
    """Refuse variables that mean nothing; `several`: the file has tables `[[model]]`."""
    beginnings = tuple(f"{_PREFIX}{name.upper()}" for name in Settings.model_fields)
    for name in os.environ:
        if several and name.startswith(f"{_PREFIX}MODEL_"):
            raise InputError(f"{name}: cannot say which table [[model]] of the settings it is for; change it there")
        if name.startswith(_PREFIX) and not name.startswith(beginnings) and name != TOKEN_VARIABLE:
            raise InputError(f"{name}: no such variable; it must begin with one of {', '.join(beginnings)}")


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    database, hbase, hadoop = values.get("database"), values.get("hbase"), values.get("hadoop")
    model = values.get("model")
    for table in model if isinstance(model, list) else [model]:
        _resolve_model(table, folder)
    if isinstance(database, dict) and str(database.get("url", "")).startswith("sqlite:///"):
        database["url"] = "sqlite:///" + _join(folder, database["url"].removeprefix("sqlite:///"))
    if isinstance(hbase, dict) and isinstance(hbase.get("ca"), str):
        hbase["ca"] = _join(folder, hbase["ca"])
    if isinstance(hadoop, dict):
        for key in ("bin", "streaming_jar", "environment"):
            if isinstance(hadoop.get(key), str):
                hadoop[key] = _join(folder, hadoop[key])
        if isinstance(hadoop.get("storage"), str) and not urlsplit(hadoop["storage"]).scheme:
            hadoop["storage"] = _join(folder, hadoop["storage"])
        if isinstance(hadoop.get("python"), str) and "/" in hadoop["python"]:
            hadoop["python"] = _join(folder, hadoop["python"])


def _resolve_model(table: Any, folder: Path) -> None:
    if not isinstance(table, dict):
        return
    if str(table.get("from", "")).startswith(f"{FILE}:"):
        table["from"] = f"{FILE}:" + _join(folder, table["from"].removeprefix(f"{FILE}:"))
    if isinstance(table.get("packages"), list):
        table["packages"] = [_join(folder, str(path)) for path in table["packages"]]


def _join(folder: Path, path: str) -> str:
    return os.path.normpath(folder / path)  # links are kept: the Python of a virtual environment is one


def _describe(error: Any) -> str:
    location = tuple(name for name in error["loc"] if name not in (ONE, SEVERAL))
    key = ".".join(map(str, location)) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key{_suggest(location)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}"


def _suggest(location: tuple[Any, ...]) -> str:
    import difflib

    table: Any = Settings
    for name in location[:-1]:
        if not isinstance(name, int):  # a table's number
            table = ModelSettings if name == "model" else table.model_fields[name].annotation
    keys = [field.alias or name for name, field in table.model_fields.items()]
    close = difflib.get_close_matches(location[-1], keys, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys are {', '.join(keys)}"
