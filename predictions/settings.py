"""The settings: `predictions.toml`, with environment variables over it, checked whole before anything runs.

An environment variable is `PREDICTIONS_` and the key, its table first: `PREDICTIONS_HBASE_THRIFT` is `thrift` of
`[hbase]`. Relative paths in the file are relative to the file, in a variable to the working directory.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from predictions.errors import InputError
from predictions.hbase.server import Server

FILE_NAME = "predictions.toml"
RUNNERS = ("pipe", "local", "hadoop")  # of score
VIAS = ("hfiles", "puts")  # of load
LOADERS = ("local", "hadoop")  # of load by puts
_PREFIX = "PREDICTIONS_"
TOKEN_VARIABLE = f"{_PREFIX}TOKEN"  # of `predictions serve`; a secret, so no setting


def _check_address(address: str) -> str:
    host_and_port = re.fullmatch(r"[^\s:/]+:(\d{1,5})", address)
    if not host_and_port or int(host_and_port[1]) > 65535:
        raise ValueError("must be HOST:PORT")
    return address


def _absolute_if_path(command: str) -> str:
    return os.path.abspath(command) if "/" in command else command


def _as_text(value: Any) -> Any:
    """Return a number or a boolean of TOML as Hadoop writes it."""
    return str(value).lower() if isinstance(value, (bool, int, float)) else value


AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Table):
    """`[database]`: where the records are.

    `timeout` is how many seconds a lookup waits for them, `export_timeout` how many a statement of the export may take,
    `connections` over how many at once it reads a table of PostgreSQL.
    """

    url: str
    table: str | None = None
    query: str | None = None
    id: str
    timeout: Annotated[float, Field(gt=0)] = 10.0
    export_timeout: Annotated[float, Field(gt=0)] = 14_400.0
    connections: Annotated[int, Field(ge=1, le=64)] = 2

    @model_validator(mode="after")
    def _one_source(self) -> "DatabaseSettings":
        if (self.table is None) == (self.query is None):
            raise ValueError("name either a table (or view) or a query")
        return self


class ModelSettings(_Table):
    """`[model]`: what is learnt from what."""

    label: str
    features: Annotated[list[str], Field(min_length=1)]
    estimator: str = "sklearn.ensemble.HistGradientBoostingClassifier"
    params: dict[str, Any] = {}
    sample: Annotated[int, Field(ge=100)] = 1_000_000
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _distinct(self) -> "ModelSettings":
        repeated = sorted({name for name in self.features if self.features.count(name) > 1})
        if repeated:
            raise ValueError(f"features: named twice: {', '.join(repeated)}")
        if self.label in self.features:
            raise ValueError(f"features: {self.label!r} is the label, which is what is predicted")
        return self


class HbaseSettings(_Table):
    """`[hbase]`: where predictions are served from.

    `thrift` is `HOST:PORT` of HBase's Thrift server, which speaks `transport` and `protocol`, or with `tls` of a TLS
    proxy before it, whose certificate those of the PEM file `ca` must vouch for (by default the system's). `timeout` is
    how many seconds a request of a lookup may take with all its repetitions, `load_timeout` one of the loader: a region
    server that dies is replaced within minutes.
    """

    thrift: Annotated[str, AfterValidator(_check_address)] = "127.0.0.1:9090"
    regions: Annotated[int, Field(ge=1, le=4096)] = 4
    transport: Literal["buffered", "framed"] = "buffered"
    protocol: Literal["binary", "compact"] = "binary"
    tls: bool = False
    ca: AbsolutePath | None = None
    timeout: Annotated[float, Field(gt=0)] = 10.0
    load_timeout: Annotated[float, Field(gt=0)] = 600.0

    def server(self, loading: bool = False) -> Server:
        """Return what a connection has to know; who loads has more patience than who looks a record up."""
        host, _colon, port = self.thrift.rpartition(":")
        patience = "load_timeout" if loading else "timeout"
        return Server(
            host,
            int(port),
            self.transport,
            self.protocol,
            self.tls,
            str(self.ca) if self.ca else None,
            getattr(self, patience),
            f"hbase.{patience}",
        )


class HadoopSettings(_Table):
    """`[hadoop]`: where the files between the stages lie, and how jobs are run.

    `storage` is a `webhdfs://HOST:PORT/PATH` URL or a local folder, `bin` the folder of `hadoop` and `hbase` if they
    are not on the PATH, `python` the tasks' interpreter, `environment` a packed environment (`predictions pack`),
    `properties` Hadoop's own for the job, such as its queue. Every task can read those: they are no place for secrets.
    """

    storage: str = "webhdfs://127.0.0.1:9870/predictions"
    bin: AbsolutePath | None = None
    streaming_jar: AbsolutePath | None = None
    python: Annotated[str, AfterValidator(_absolute_if_path)] = "python3"
    environment: AbsolutePath | None = None
    properties: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Annotated[str, BeforeValidator(_as_text)]] = {}


class GateSettings(_Table):
    """`[gates]`: what a release must satisfy; the last three, beside the one that is served."""

    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.01
    min_skill: Annotated[float, Field(ge=-1, le=1)] = 0.01
    max_gone: Annotated[float, Field(ge=0, le=1)] = 0.2
    max_psi: Annotated[float, Field(ge=0)] = 0.25
    max_changed: Annotated[float, Field(ge=0, le=1)] = 0.3


class RetentionSettings(_Table):
    """`[retention]`: how many loaded releases are kept beside the current and the previous one, and hours of grace."""

    keep: Annotated[int, Field(ge=1)] = 3
    grace_hours: Annotated[float, Field(ge=0)] = 24.0


class Settings(BaseSettings):
    """All settings of one set of predictions."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="_", env_nested_max_split=1, extra="forbid", frozen=True
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
    database: DatabaseSettings
    model: ModelSettings
    hbase: HbaseSettings = HbaseSettings()
    hadoop: HadoopSettings = HadoopSettings()
    gates: GateSettings = GateSettings()
    retention: RetentionSettings = RetentionSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment come before the file, and read no other source."""
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        path: the file; by default `predictions.toml` of the working directory.

    Raises:
        InputError: the file is missing or not TOML, or a key is unknown, missing or has a wrong value.
    """
    file = (path or Path(FILE_NAME)).resolve()  # a link counts as the file that it leads to
    try:
        values = tomllib.loads(file.read_text())
    except OSError as error:
        advice = "name one with --settings, or write one with `predictions init`"
        raise InputError(f"{path or FILE_NAME}: {error.strerror}; {advice}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path or FILE_NAME}: not TOML: {error}") from error
    _resolve_paths(values, file.parent)
    _check_variables()
    try:
        return Settings(**values)
    except SettingsError as error:
        raise InputError(f"{_PREFIX}…: a list or a table in a variable is written as JSON: {error}") from error
    except ValidationError as error:
        raise InputError(f"{path or FILE_NAME}: " + "; ".join(map(_describe, error.errors()))) from error


def _check_variables() -> None:
    known = tuple(f"{_PREFIX}{name.upper()}" for name in Settings.model_fields)
    for name in os.environ:
        if name.startswith(_PREFIX) and not name.startswith(known) and name != TOKEN_VARIABLE:
            raise InputError(f"{name}: no such variable; they begin with {', '.join(known)}")


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    database, hbase, hadoop = values.get("database"), values.get("hbase"), values.get("hadoop")
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


def _join(folder: Path, path: str) -> str:
    return os.path.normpath(folder / path)  # not resolved: a virtual environment's python is a link


def _describe(error: Any) -> str:
    key = ".".join(map(str, error["loc"])) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key{_suggest(error['loc'])}"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}"


def _suggest(location: tuple[str, ...]) -> str:
    import difflib

    table: Any = Settings
    for name in location[:-1]:
        table = table.model_fields[name].annotation
    close = difflib.get_close_matches(location[-1], table.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it may be one of {', '.join(table.model_fields)}"
