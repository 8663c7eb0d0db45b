"""`predictions doctor`."""

import click

from predictions.cli.exits import DONE
from predictions.cli.session import Session
from predictions.stages.doctor import examine_job, examine_setup


@click.command("doctor")
@click.argument("job", required=False)
@click.pass_obj
def command(session: Session, job: str | None) -> int:
    """Say why a job failed, or check the setup.

    With JOB, names the cause and what to do, from the attempts' logs. Without it, checks whether a run can work.
    """
    settings, code = session.settings, DONE
    if job:
        click.echo(examine_job(settings, job))
        return DONE
    for finding in examine_setup(settings, session.storage):
        click.echo(f"{'FAIL' if finding.error else 'ok  '}  {finding.name}: {finding.text}")
        if finding.error:
            code = code or finding.error.exit_code
    return code
