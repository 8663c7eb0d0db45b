"""The command line: a command a module of this folder, which is imported when the command is given."""

from importlib import import_module
from pathlib import Path

import click

from predictions.cli import exits
from predictions.cli.session import Session
from predictions.settings import FILE_NAME

# In the order of their use; each in a line, so that to list them imports none.
COMMANDS = {
    "init": "Write the first settings for a table of yours.",
    "export": "Start a release: export every record.",
    "train": "Train the model of a release.",
    "score": "Score every exported record.",
    "load": "Load the predictions into a table of HBase.",
    "verify": "Compare a loaded table with what was scored.",
    "activate": "Serve a release, if the gates let it pass.",
    "rollback": "Serve the release again that was served before.",
    "run": "Do all of that, from export to activate.",
    "releases": "List the releases, or remove old ones.",
    "compare": "Show how the predictions of two releases differ.",
    "report": "Write the report of a release, in HTML.",
    "get": "Look up records and their predictions.",
    "serve": "Answer lookups over HTTP.",
    "explain": "Show what led to a prediction.",
    "hfile": "Verify or print an HFile of a release.",
    "pack": "Pack the libraries that a job's tasks need.",
    "doctor": "Say why a job failed, or check the setup.",
}


class Commands(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"predictions.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands)
@click.option("--settings", type=click.Path(path_type=Path), metavar="FILE", help=f"Default: {FILE_NAME}.")
@click.option("--storage", metavar="URL", help="Over hadoop.storage: a webhdfs:// URL or a local folder.")
@click.version_option(package_name="predictions")
@click.pass_context
def cli(context: click.Context, settings: Path | None, storage: str | None) -> None:
    """Predictions for every record of a database, made by MapReduce and served from HBase."""
    context.obj = Session(settings, storage)


def main() -> None:
    """Run the command line."""
    exits.run(cli, "predictions")
