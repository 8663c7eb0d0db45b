"""`predictions model`: fitted models that are brought in."""

import click

from predictions.cli.session import Session
from predictions.errors import InputError
from predictions.settings import check_from


@click.group("model")
def command() -> None:
    """Check a fitted model before it is brought in."""


@command.command("check")
@click.argument("model", metavar="FROM", required=False)
@click.pass_obj
def check(session: Session, model: str | None) -> int:
    """Check the fitted model FROM, by default that of the settings.

    FROM is as in model.from. Shows which of its types are not trusted, versions, columns and their data types, whether
    a record alone is predicted as in its block, and the time a record takes. Starts no release. The exit code is 2 if
    `train` would refuse the model.
    """
    from predictions.stages.model_check import check_model

    settings = session.settings
    if model:
        try:
            origins = [(settings.models[0], check_from(model))]
        except ValueError as error:
            raise InputError(f"{model}: {error}") from error
    else:
        origins = [(each, each.from_) for each in settings.models if each.from_]
    if not origins:
        raise InputError("model.from: not set; name a model, such as file:churn.skops")
    refused, subject = False, ""
    for wanted, origin in origins:
        for finding in check_model(settings.database, wanted, origin):
            refused |= finding.refused
            name = "" if finding.subject == subject else finding.subject
            click.secho(f"{name:10} {finding.text}", fg="red" if finding.refused else None)
            subject = finding.subject
    return InputError.exit_code if refused else 0
