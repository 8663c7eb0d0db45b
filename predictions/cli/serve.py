"""`predictions serve`."""

import click

from predictions.cli.exits import log_to_stderr
from predictions.cli.session import Session
from predictions.errors import InputError
from predictions.lookup.client import Client


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but loopback needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--max-age", type=click.FloatRange(0), metavar="SECONDS", help="After which a prediction is `expired`.")
@click.option("--online", is_flag=True, help="Score what is not in the release, or has changed, when it is asked for.")
@click.pass_obj
def command(session: Session, host: str, port: int, max_age: float | None, online: bool) -> None:
    """Answer lookups over HTTP, with a page at /; the token for other machines is in PREDICTIONS_TOKEN."""
    try:
        from predictions.service.server import serve
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'predictions[serve]'") from error
    log_to_stderr()
    with Client(session.settings, max_age=max_age, model=online and session.storage_url) as client:
        serve(session.settings, client, host, port)
