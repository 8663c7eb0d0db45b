"""What the commands share: the settings and the storage, and options that several commands have."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from predictions.settings import RUNNERS, Settings, load_settings
from predictions.storage import Storage

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """The options before the command; the settings file is read when a command first needs it."""

    def __init__(self, settings: Path | None, storage: str | None) -> None:
        self._path = settings
        self._storage = storage

    @cached_property
    def settings(self) -> Settings:
        return load_settings(self._path)

    @property
    def storage_url(self) -> str:
        return self._storage or self.settings.hadoop.storage

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.storage_url, self.settings.name)


def release_option(command: F) -> F:
    return click.option("--release", metavar="ID", help="Release ID; default: the newest release.")(command)


def processes_option(default: str = "one for each core") -> Callable[[F], F]:
    text = f"Number of regions at once; default: {default}."
    return click.option("--processes", type=click.IntRange(1), metavar="N", help=text)


def rate_option(text: str) -> Callable[[F], F]:
    return click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="ROWS", help=text)


def export_rate_option(command: F) -> F:
    return rate_option("Rows per second to read from the database, at most; default: no limit.")(command)


def runner_option(command: F) -> F:
    text = "pipe: one process of each script; local: all cores; hadoop: a job. Default: hadoop on HDFS, else local."
    return click.option("--runner", type=click.Choice(RUNNERS), help=text)(command)


def model_option(command: F) -> F:
    text = "Release whose model to take; default: train a model."
    return click.option("--model", metavar="RELEASE", help=text)(command)


def changed_option(text: str) -> Callable[[F], F]:
    return click.option("--changed", is_flag=True, help=text)


def json_option(text: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=text)
