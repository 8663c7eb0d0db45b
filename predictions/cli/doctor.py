"""`predictions doctor`."""

import click

from predictions.cli.exits import DONE
from predictions.cli.session import Session
from predictions.stages.doctor import examine_job, examine_setup


@click.command("doctor")
@click.argument("job", required=False)
@click.pass_obj
def command(session: Session, job: str | None) -> int:
    """Say why JOB failed and what to do; without one, check that the setup is fit for a run."""
    settings, code = session.settings, DONE
    if job:
        click.echo(examine_job(settings, job))
        return DONE
    for finding in examine_setup(settings, session.storage):
        click.echo(f"{'FAIL' if finding.error else 'ok  '}  {finding.name}: {finding.text}")
        if finding.error:
            code = code or finding.error.exit_code
    return code
