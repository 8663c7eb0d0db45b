"""`predictions hfile`: verify an HFile to its last byte, or print its cells."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice

import click
import fsspec
import requests

from predictions.errors import InputError, ServiceError
from predictions.formats.hfile.cells import KeyValue, decode_key
from predictions.formats.hfile.reader import HFileReader
from predictions.formats.hfile.trailer import Field
from predictions.formats.hfile.writer import LAST_KEY
from predictions.formats.record_line import escape, write_rows

LINES = 1_000  # lines written at once


@click.group("hfile")
def command() -> None:
    """Verify or print an HFile of a release.

    FILE is a path on this machine, or a URL such as webhdfs://HOST:PORT/PATH.
    """


@command.command("verify")
@click.argument("file")
def verify(file: str) -> None:
    """Verify FILE: its checksums, order, index and counts."""
    for name, value in summary(file).items():
        click.echo(f"{name:12} {value}")


@command.command("dump")
@click.argument("file")
def dump(file: str) -> None:
    """Print the cells of FILE, one per line.

    A line has row key, column, timestamp (milliseconds since 1970) and value, separated by tabs and escaped like a
    record line.
    """
    for block in lines(file):
        click.echo(block, nl=False)


def summary(url: str) -> dict[str, str]:
    """Read a whole HFile, and return a summary: names and values as text.

    Args:
        url: the path of a local file, or a URL that fsspec knows.

    Raises:
        InputError: there is no such file.
        ServiceError: the URL's server does not answer.
        VerificationError: the file is damaged.
    """
    with _open(url) as reader:
        first, newest = b"", 0
        for cell in reader.read():
            first, newest = first or cell.row, max(newest, cell.time)
        last, *_rest = decode_key(reader.info[LAST_KEY])
        return {
            "rows": f"{reader.rows:,}",
            "cells": f"{reader.cells:,}",
            "bytes": f"{reader.size:,}",
            "data blocks": f"{reader.blocks:,}",
            "index levels": str(reader.trailer[Field.INDEX_LEVELS]),
            "codec": reader.codec.name,
            "first row": _text(first),
            "last row": _text(last),
            "newest cell": _time(newest),
        }


def lines(url: str) -> Iterator[bytes]:
    """Yield the cells of an HFile as lines: row key, column, timestamp, value. Raises the errors of `summary`."""
    with _open(url) as reader:
        cells = reader.read()
        while rows := list(islice(cells, LINES)):
            yield write_rows(map(_fields, rows))


def _fields(cell: KeyValue) -> tuple[bytes, ...]:
    return escape(cell.row), escape(cell.family + b":" + cell.qualifier), b"%d" % cell.time, escape(cell.value)


def _text(key: bytes) -> str:
    return escape(key).decode(errors="backslashreplace")


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
    except (ValueError, OverflowError):  # after the year 9999
        return f"{milliseconds:,} ms after 1970"


@contextmanager
def _open(url: str) -> Iterator[HFileReader]:
    try:
        with fsspec.open(url, "rb") as file:
            yield HFileReader(file, url)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise ServiceError(f"{url}: HDFS does not answer") from error
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"{url}: {error}") from error
