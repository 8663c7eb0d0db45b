"""`predictions compare`: two releases side by side."""

import click
from rich.console import Console
from rich.table import Table

from predictions.cli.session import Session, json_option, processes_option
from predictions.comparison.comparison import AMOUNT_EDGES, Comparison
from predictions.progress import bar
from predictions.stages.compare import compare_releases, to_json
from predictions.storage import ReleaseFolder
from predictions.workers import cores


@click.command("compare")
@click.argument("before")
@click.argument("after")
@processes_option()
@json_option("Print one JSON object.")
@click.pass_obj
def command(session: Session, before: str, after: str, processes: int | None, as_json: bool) -> None:
    """Show how the predictions of two releases differ.

    Compares release AFTER with release BEFORE record by record, and shows the distribution of each.
    """
    earlier, later = (session.storage.release(release) for release in (before, after))
    with bar("compare") as progress:
        comparison = compare_releases(earlier, later, processes or cores(), lambda share: progress(share, 1.0))
    if as_json:
        click.echo(to_json(comparison, before, after))
    else:
        for label, labels_comparison in zip(comparison.labels, comparison.each, strict=True):
            if label.name is not None:
                click.echo(f"\n{label.name}\n")
            _show(labels_comparison, earlier, later)


def _show(comparison: Comparison, before: ReleaseFolder, after: ReleaseFolder) -> None:
    """Print a comparison to stdout."""
    console = Console(highlight=False)
    console.print(_sides(comparison, before.release, after.release))
    share = comparison.changed / max(1, comparison.both)
    console.print(
        f"\n{comparison.both:,} records were scored in both: {comparison.changed:,} predictions changed ({share:.2%}); "
        f"{comparison.gone:,} records are gone, {comparison.appeared:,} are new"
    )
    console.print(
        f"population stability index {comparison.stability:.4f} (below 0.1: stable; above 0.25: a different population)"
    )
    bounds = [f"below {AMOUNT_EDGES[0]:g}", *(f"from {edge:g}" for edge in AMOUNT_EDGES)]
    counts = comparison.amounts.tolist()
    console.print(
        "size of the changes: " + ", ".join(f"{bound}: {count:,}" for bound, count in zip(bounds, counts, strict=True))
    )
    if comparison.examples:
        console.print("\nthe records that changed most:")
        console.print(_examples(comparison, before.release, after.release))


def _sides(comparison: Comparison, before: str, after: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", before, after):
        table.add_column(column, justify="right" if column else "left")
    sides = [side.as_json() for side in (comparison.before, comparison.after)]
    table.add_row("records", *(f"{side['rows']:,}" for side in sides))
    table.add_row("failed", *(f"{side['failed']:,}" for side in sides))
    for label in sorted(sides[0]["classes"].keys() | sides[1]["classes"].keys()):
        shares = (side["classes"].get(label, 0) / max(1, side["rows"] - side["failed"]) for side in sides)
        table.add_row(f"class {label}", *(f"{share:.2%}" for share in shares))
    table.add_row("mean score", *(_number(side["mean"]) for side in sides))
    for share in sides[0]["quantiles"]:
        table.add_row(f"{float(share):.0%} below", *(_number(side["quantiles"][share]) for side in sides))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _examples(comparison: Comparison, before: str, after: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("record", before, after, "by"):
        table.add_column(column, overflow="fold")
    for change in comparison.as_json()["examples"]:
        sides = [
            label if share is None else f"{label} ({share})" for label, share in (change["before"], change["after"])
        ]
        table.add_row(change["id"], *sides, f"{change['amount']:.4g}")
    return table
