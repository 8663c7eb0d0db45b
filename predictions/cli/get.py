"""`predictions get`: look up IDs, and print a table for people or JSON lines for programs."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from predictions.cli.exits import DONE, UNAVAILABLE
from predictions.cli.session import Session, json_option
from predictions.lookup.answer import Answer, LabelAnswer
from predictions.lookup.client import Client, blocks

# A terminal would obey control characters, so their pictures are shown (Unicode, "Control Pictures").
_PICTURES = {code: 0x2400 + code for code in range(32)} | {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
FURTHER = ("probabilities", "predictions", "contributions")  # dictionaries
COLORS = {"fresh": "green", "changed": "yellow", "unscored": "yellow", "expired": "yellow"}  # others: red


@click.command("get", context_settings={"ignore_unknown_options": True})  # -5 is an ID
@click.argument("ids", nargs=-1, metavar="[ID]...")
@json_option("Print one JSON object per line.")
@click.pass_obj
def command(session: Session, ids: Sequence[str], as_json: bool) -> int:
    """Look up records and their predictions.

    IDs are arguments, or lines on stdin, each taken exactly as it is.
    """
    if not ids and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("no IDs: pass them as arguments, or on stdin, one per line")
    code = DONE
    with Client(session.settings) as client:
        answers = client.stream(ids or read_ids(sys.stdin.buffer))
        for answer in print_json(answers) if as_json else print_table(answers):
            if answer.status == "unavailable":
                code = UNAVAILABLE
    return code


def read_ids(stream: IO[bytes]) -> Iterator[str]:
    """Yield a stream's lines as IDs, exactly as they are; invalid UTF-8 becomes an ID that no record can have."""
    for line in stream:
        yield line.removesuffix(b"\n").decode(errors="surrogateescape")


def print_json(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Print answers to stdout, one JSON object per line, and yield them."""
    for block in blocks(answers):
        # An ID of invalid UTF-8 can be printed only in ASCII escapes.
        lines = [json.dumps(answer.as_json(), ensure_ascii=not answer.id.isprintable()) for answer in block]
        click.echo("\n".join(lines))
        yield from block


def print_table(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Print answers to stdout, and yield them: a single one with its record, several as a table for each block."""
    is_first = True
    for block in blocks(answers):
        if is_first and len(block) == 1:
            _print_one(block[0])
        else:
            _print_all(block)
        is_first = False
        yield from block


def _print_one(answer: Answer) -> None:
    title = Text.assemble(_text(answer.id), " · ", (answer.status, COLORS.get(answer.status, "red")))
    if answer.status == "missing":
        Console(highlight=False).print(Text.assemble(title, ": no record has this ID"))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, value in (answer.record or {}).items():
        table.add_row(_text(name), _text("–" if value is None else value))
    if answer.record and answer.release:
        table.add_row("", "")
    values = answer.as_json()
    for label, of_label in (answer.labels or {}).items():
        table.add_row(_text(label, "bold"), _text(_in_words(of_label), "bold"))
    for name in ("prediction", "probability", *FURTHER, "error", "scored", "release", "unavailable"):
        if name in values:
            value = values[name]
            if name == "unavailable":
                value = ", ".join(value)
            elif name in FURTHER:
                value = ", ".join(f"{key}: {number:.7g}" for key, number in value.items())
            table.add_row(Text(name, style="bold"), _text("–" if value is None else value, "bold"))
    Console(highlight=False).print(Panel(table, title=title, title_align="left", expand=False))


def _print_all(answers: list[Answer]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in ("id", "status", "prediction", "probability", "scored", "error"):
        right = column in ("prediction", "probability")
        table.add_column(column, overflow="fold", justify="right" if right else "left")
    for answer in answers:
        prediction = answer.prediction
        if answer.labels:
            prediction = ", ".join(f"{label}: {_in_words(of_label)}" for label, of_label in answer.labels.items())
        values = (prediction, answer.probability, answer.scored, answer.error)
        status = Text(answer.status, COLORS.get(answer.status, "red"))
        table.add_row(_text(answer.id), status, *(_text("" if value is None else value) for value in values))
    console = Console(highlight=False)
    # A record is one line, however narrow the terminal, so that its ID can be copied and searched for.
    unlimited = console.options.update(max_width=sys.maxsize)
    console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table, soft_wrap=True)


def _in_words(answer: LabelAnswer) -> str:
    """Return what one of several labels says, in a line."""
    if answer.prediction is None:
        return answer.error or "–"
    return str(answer.prediction) + ("" if answer.probability is None else f" ({answer.probability:.7g})")


def _text(value: object, style: str = "") -> Text:
    return Text(str(value).translate(_PICTURES), style)
