"""Answers for a person to read: the record beside its prediction."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from predictions.answer import Answer

COLORS = {"fresh": "green", "changed": "yellow", "unscored": "yellow", "failed": "red", "unavailable": "red"}


def show(answer: Answer) -> None:
    """Print one answer to stdout."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, value in (answer.record or {}).items():
        table.add_row(Text(name), Text("–" if value is None else str(value)))
    if answer.record and answer.release:
        table.add_row("", "")
    known = answer.as_json()
    for name in ("prediction", "probability", "error", "scored", "release", "unavailable"):
        if name in known:
            table.add_row(Text(name, style="bold"), Text(str(known[name]), style="bold"))
    title = Text.assemble(f"{answer.id} · ", (answer.status, COLORS.get(answer.status, "red")))
    Console(highlight=False).print(Panel(table, title=title, title_align="left", expand=False))
