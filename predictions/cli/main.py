"""The command line: each command is a module of this folder, which is imported when the command is used."""

from importlib import import_module
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from predictions.cli import exits
from predictions.cli.session import Session
from predictions.settings import FILE_NAME

# In the order of their use. Each text is the first sentence of the command's own help; to list them imports no command.
COMMANDS = {
    "init": "Write a first predictions.toml.",
    "export": "Start a release: export every record.",
    "train": "Train the model of a release.",
    "score": "Score every record of a release.",
    "load": "Load a release into an HBase table of its own.",
    "verify": "Compare a loaded table with what was scored.",
    "activate": "Serve a release, if its gates pass.",
    "rollback": "Serve the previous release again.",
    "run": "Run all stages, from export to activate.",
    "releases": "List the releases, or remove old ones.",
    "compare": "Show how the predictions of two releases differ.",
    "report": "Write the report of a release, as HTML.",
    "get": "Look up records and their predictions.",
    "serve": "Answer lookups over HTTP.",
    "explain": "Show where a prediction comes from.",
    "hfile": "Verify or print an HFile of a release.",
    "model": "Check a fitted model before it is brought in.",
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands)
@click.option(
    "--settings", type=click.Path(path_type=Path), metavar="FILE", help=f"Settings file; default: {FILE_NAME}."
)
@click.option(
    "--storage",
    metavar="URL",
    help="Storage of the releases, a webhdfs:// URL or a local folder; default: hadoop.storage.",
)
@click.version_option(package_name="predictions")
@click.pass_context
def cli(context: click.Context, settings: Path | None, storage: str | None) -> None:
    """Predictions for every record of a database, made by MapReduce and served from HBase."""
    context.obj = Session(settings, storage)


def main() -> None:
    """Run the command line."""
    exits.run(cli, "predictions")
