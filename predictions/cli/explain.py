"""`predictions explain`: from a prediction back to its release, model and lines, and the record then and now."""

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from predictions.cli.session import Session, json_option
from predictions.errors import InputError
from predictions.formats.manifest import Manifest, Training
from predictions.formats.record_line import escape
from predictions.formats.row_key import row_keys
from predictions.lookup.client import Client
from predictions.settings import Settings
from predictions.storage import ReleaseFolder, Storage


@click.command("explain", context_settings={"ignore_unknown_options": True})  # -5 is an ID
@click.argument("record_id", metavar="ID")
@json_option("Print one JSON object.")
@click.pass_obj
def command(session: Session, record_id: str, as_json: bool) -> None:
    """Show where a prediction comes from.

    Shows the release and the model of the prediction that is served for the record ID, its record line and prediction
    line, and the record as it is now.
    """
    explanation = explain(session.settings, session.storage, record_id)
    if as_json:
        click.echo(json.dumps(explanation, ensure_ascii=False))
    else:
        _show(explanation)


def explain(settings: Settings, storage: Storage, record_id: str) -> dict[str, Any]:
    """Return where the prediction that is served for a record comes from; a line that was not found is None.

    Args:
        settings: where the database and HBase are.
        storage: where the release's files are.
        record_id: the record ID, as text.

    Raises:
        InputError: no release is served, or its files are gone.
    """
    with Client(settings) as client:
        answer = client.get(record_id)
    if answer.release is None:
        raise InputError(f"{settings.name}: {answer.error or 'no release is served'}; nothing to explain")
    folder = storage.release(answer.release)
    manifest, scored = folder.manifest, folder.scored
    escaped = escape(record_id.encode(errors="surrogatepass"))
    [key] = row_keys([escaped])
    part = bisect_right([point.encode() for point in scored.split_points], key)
    return {
        **answer.as_json(),
        "snapshot": manifest.snapshot.time,
        **_models(manifest),
        "job": scored.job,
        "row_key": key.decode(errors="replace"),
        "prediction_line": _find(folder, [folder.part("scored", part)], key),
        "record_line": _find(folder, folder.files("export"), escaped),
    }


def _models(manifest: Manifest) -> dict[str, Any]:
    """Return the facts about the model or, with several labels, about each label's."""
    models = {predicted.name: asdict(predicted.model) for predicted in manifest.predicted}
    return {"model": models[None]} if None in models else {"models": models}


def _find(folder: ReleaseFolder, paths: Iterable[str], field: bytes) -> dict[str, Any] | None:
    """Return the file, the line number and the text of the first line with this first field."""
    for path in paths:
        number = 1
        for block in folder.blocks(path):
            start = (b"\n" + block).find(b"\n" + field + b"\t")
            if start >= 0:
                line = block[start : block.index(b"\n", start)]
                number += block.count(b"\n", 0, start)
                return {"file": path, "line": number, "text": line.decode(errors="backslashreplace")}
            number += block.count(b"\n")
    return None


def _show(explanation: dict[str, Any]) -> None:
    """Print an explanation to stdout."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    rows = {
        "record": f"{explanation['id']}, {explanation['status']}",
        "prediction": explanation.get("prediction"),
        "probability": explanation.get("probability"),
        "probabilities": explanation.get("probabilities"),
        "predictions": explanation.get("predictions"),
        **{f"prediction of {label}": values for label, values in explanation.get("labels", {}).items()},
        "error": explanation.get("error"),
        "release": f"{explanation['release']}, of a snapshot at {explanation['snapshot']}",
        "scored": explanation.get("scored"),
        **_model_rows(explanation),
        "job": explanation["job"] or "none: scored without a cluster",
        "row key": explanation["row_key"],
        "prediction line": _line_text(explanation["prediction_line"]),
        "record as scored": _line_text(explanation["record_line"]),
        "record now": explanation.get("record", "not found"),
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(Text(name), Text(str(value)))
    Console(highlight=False).print(table)


def _model_rows(explanation: dict[str, Any]) -> dict[str, str]:
    """Return what is shown of the models."""
    rows = {}
    models = explanation.get("models") or {"": explanation["model"]}
    for label, model in models.items():
        training = model["training"]
        metrics = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in training["metrics"].items())
        of = f" of {label}" if label else ""
        rows[f"model{of}"] = f"{model['estimator']}, sha256 {model['sha256']}"
        fitted = (
            f"brought in from {model['origin']}" if model["origin"] else f"trained on {training['fitted']:,} records"
        )
        rows[of and f"training{of}"] = f"{fitted}; on {Training(**training).measured_on}: {metrics}"
    return rows


def _line_text(line: dict[str, Any] | None) -> str:
    return f"{line['file']}, line {line['line']:,}: {line['text']}" if line else "not found"
