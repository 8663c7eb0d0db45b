"""`predictions serve`."""

import click

from predictions.cli.exits import log_to_stderr
from predictions.cli.session import Session
from predictions.errors import InputError
from predictions.lookup.client import Client


@click.command("serve")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but loopback needs a token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--max-age",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Age in seconds after which a prediction is `expired`; default: no limit.",
)
@click.option("--online", is_flag=True, help="Score new and changed records when they are looked up.")
@click.pass_obj
def command(session: Session, host: str, port: int, max_age: float | None, online: bool) -> None:
    """Answer lookups over HTTP.

    There is a page at /. Requests from other machines need the token in PREDICTIONS_TOKEN.
    """
    try:
        from predictions.service.server import serve
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[serve]'") from error
    log_to_stderr()
    with Client(session.settings, max_age=max_age, model=online and session.storage_url) as client:
        serve(session.settings, client, host, port)
