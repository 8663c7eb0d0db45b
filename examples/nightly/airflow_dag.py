"""A nightly run with Airflow 3: a new release, its report, and the removal of old releases.

Copy this file into Airflow's folder of DAGs. FOLDER is on the workers and has predictions.toml and .venv.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

FOLDER = "/srv/flights"

with DAG("predictions", schedule="15 2 * * *", start_date=datetime(2026, 11, 1), catchup=False, max_active_runs=1):
    # Exit code 1 is a success: some records failed, but no more than gates.max_failed. After any other code Airflow
    # tries again. That helps after 4 and 6, when a service or the job failed; after 2, 3 and 5 it does no harm.
    run = BashOperator(
        task_id="run",
        bash_command=".venv/bin/predictions run || [ $? -eq 1 ]",
        cwd=FOLDER,
        retries=2,
        retry_delay=timedelta(minutes=10),
    )
    # Also after a run that a gate refused: the report shows why.
    report = BashOperator(
        task_id="report",
        bash_command=".venv/bin/predictions report --output reports",
        cwd=FOLDER,
        trigger_rule="all_done",
    )
    # Only after a run that succeeded. Without one, this task makes the DAG's run a failure, whatever `report` did.
    clean = BashOperator(task_id="clean", bash_command=".venv/bin/predictions releases --clean", cwd=FOLDER)

    run >> [report, clean]
