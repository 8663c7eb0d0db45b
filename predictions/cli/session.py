"""What the commands share: the settings and the storage that the options before a command name, and some options."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from predictions.settings import RUNNERS, Settings, load_settings
from predictions.storage import Storage

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """The options before the command; settings are read when a command asks for them."""

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
    return click.option("--release", metavar="ID", help="The release; by default the newest.")(command)


def processes_option(command: F) -> F:
    text = "How many regions at once; by default as many as there are cores."
    return click.option("--processes", type=click.IntRange(1), metavar="N", help=text)(command)


def rate_option(text: str) -> Callable[[F], F]:
    return click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="ROWS", help=text)


def export_rate_option(command: F) -> F:
    return rate_option("Rows a second, at most, that are read from the database.")(command)


def runner_option(command: F) -> F:
    text = "pipe: one process of each script; local: all cores; hadoop: a job. By default hadoop on HDFS, else local."
    return click.option("--runner", type=click.Choice(RUNNERS), help=text)(command)


def model_option(command: F) -> F:
    text = "Take that release's model instead of training one."
    return click.option("--model", metavar="RELEASE", help=text)(command)


def changed_option(text: str) -> Callable[[F], F]:
    return click.option("--changed", is_flag=True, help=text)


def json_option(text: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=text)
