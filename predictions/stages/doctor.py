"""Check that a setup is fit for a run, or find out why a job failed; each problem comes with what to do about it."""

import json
import re
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from loader.bulk import can_load
from predictions.diagnosis import diagnose
from predictions.errors import InputError, PredictionsError
from predictions.hbase.connection import Connection
from predictions.jobs.bundle import task_libraries
from predictions.jobs.streaming import find_command, find_streaming_jar, require_hadoop
from predictions.jobs.yarn import CLIENT, application_report, attempt_logs, usable_nodes
from predictions.scoring import boosters
from predictions.settings import Settings
from predictions.sources import open_database
from predictions.storage import Storage

_JOB = re.compile(r"(?:job|application)_(\d+_\d+)")
_WAITING = ("NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED")


@dataclass(frozen=True)
class Finding:
    """The result of one check: its name, a text that says what works or what is wrong, and the error if it failed."""

    name: str
    text: str
    error: PredictionsError | None = None


def examine_setup(settings: Settings, storage: Storage) -> Iterator[Finding]:
    """Check everything that a run needs, and yield a finding for each check; a failed check does not stop the others.

    Args:
        settings: already read, so well-formed.
        storage: where the releases' files are.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("database", lambda: _database(settings)),
        ("storage", lambda: _storage(storage)),
    ]
    if storage.is_hdfs:
        checks += [
            (
                "hadoop",
                lambda: str(find_streaming_jar(require_hadoop(settings.hadoop.bin), settings.hadoop.streaming_jar)),
            ),
            ("YARN", lambda: usable_nodes(require_hadoop(settings.hadoop.bin))),
            ("tasks' Python", lambda: _python(settings, storage)),
        ]
    checks += [("hbase", lambda: _hbase(settings)), ("Thrift", lambda: _thrift(settings))]
    if can_load(settings, storage):
        checks.append(("bulk load", lambda: _bulk_load(settings, storage)))
    for name, check in checks:
        try:
            yield Finding(name, check())
        except PredictionsError as error:
            yield Finding(name, str(error), error)


def examine_job(settings: Settings, job: str) -> str:
    """Return why a job failed, or what it is waiting for, and what to do.

    Args:
        settings: where `hadoop` is.
        job: its ID, `job_…` or `application_…`.

    Raises:
        InputError: there is no job with this ID.
        ServiceError: YARN cannot be reached.
    """
    job_id = _JOB.fullmatch(job)
    if not job_id:
        raise InputError(f"{job}: not a job ID; it looks like job_1795366300000_0001")
    hadoop, application = require_hadoop(settings.hadoop.bin), f"application_{job_id[1]}"
    report = application_report(hadoop, application)
    if not report:
        raise InputError(
            f"{job}: YARN has no job with this ID; {CLIENT}.ApplicationCLI -list -appStates ALL lists all jobs"
        )
    states = dict(re.findall(r"^\s*(State|Final-State) : (\w+)", report, re.MULTILINE))
    state, final = states["State"], states["Final-State"]
    if final == "SUCCEEDED":
        return f"{job}: the job succeeded"
    if state in _WAITING:
        return (
            f"{job}: the job is waiting for YARN to start it ({usable_nodes(hadoop)}); other jobs may hold the memory"
        )
    if state == "RUNNING":
        return f"{job}: the job is running"
    diagnosis = diagnose(attempt_logs(application, hadoop)) or diagnose(report.splitlines())
    return f"{job}: {diagnosis or f'the job ended as {final}, and its logs show no cause'}"


def _database(settings: Settings) -> str:
    database = open_database(settings.database)
    names = {column.name for column in database.columns()}
    required = [settings.database.id, *settings.features, *(model.label for model in settings.models)]
    if missing := [name for name in required if name not in names]:
        raise InputError(f"no column {', '.join(missing)}; the columns are {', '.join(sorted(names))}")
    return f"{database.name}, with the {len(required)} columns of the settings"


def _storage(storage: Storage) -> str:
    path = f"{storage.folder}/_doctor.{uuid.uuid4().hex[:8]}"
    with storage.reachable():
        storage.fs.makedirs(storage.folder, exist_ok=True)
        try:
            with storage.fs.open(path, "wb") as file:
                file.write(b"x")
        finally:
            if path.rpartition("/")[2] in storage.names(storage.folder):
                storage.fs.rm(path)
    return f"{storage.folder} on {storage.address} is writable"


def _python(settings: Settings, storage: Storage) -> str:
    environment, python = settings.hadoop.environment, settings.hadoop.python
    if environment:
        if not environment.is_file() or not tarfile.is_tarfile(environment):
            raise InputError(
                f"hadoop.environment: {environment}: no such archive; make it with `predictions pack {environment}`"
            )
        return f"{python} with {environment}"
    libraries = task_libraries(storage)
    engines = [name for name in libraries if name in ("scikit-learn", *boosters.DISTRIBUTIONS)] or ["numpy"]
    code = (
        "import importlib.metadata as m, json; d = {d.name for d in m.distributions()}; print(json.dumps("
        f"{{n: m.version(next(filter(d.__contains__, a), n)) for n, a in {_distributions(libraries)}.items()}}))"
    )
    try:
        process = subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"hadoop.python: {python}: {error.strerror} (on this machine)") from error
    if process.returncode:
        message = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"hadoop.python: {python} lacks libraries that tasks need (on this machine): {message}; install them, or "
            "pack them with `predictions pack environment.tar.gz` and set hadoop.environment"
        )
    versions = json.loads(process.stdout)
    for engine in engines:
        own_version = boosters.version(engine)
        if versions[engine] != own_version:
            raise InputError(
                f"hadoop.python: {python} has {engine} {versions[engine]}, but models are trained here with "
                f"{own_version}: install the same version"
            )
    return f"{python} (on this machine), {', '.join(f'{engine} {versions[engine]}' for engine in engines)}"


def _distributions(libraries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the distributions that may have each library."""
    return {name: boosters.DISTRIBUTIONS.get(name, (name,)) for name in libraries}


def _hbase(settings: Settings) -> str:
    if not find_command("hbase", settings.hadoop.bin):
        if settings.hbase.regions > 1:
            return f"the command `hbase` was not found: tables will get one region, not {settings.hbase.regions}"
        return "the command `hbase` was not found, but is not needed for one region"
    return f"the command `hbase` was found: tables will get {settings.hbase.regions} regions"


def _bulk_load(settings: Settings, storage: Storage) -> str:
    """Check that HFiles can be moved to the folder of HBase, which may run as another user."""
    hbase = find_command("hbase", settings.hadoop.bin)
    assert hbase
    tool = [hbase, "org.apache.hadoop.hbase.util.HBaseConfTool", "hbase.rootdir"]
    process = subprocess.run(tool, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    root = urlsplit(process.stdout.strip()).path
    if process.returncode or not root:
        raise InputError(f"{hbase} does not know hbase.rootdir; check that it finds its configuration")
    staging = f"{root}/staging"
    for path in (root, staging):
        if not storage.may_enter(path):
            raise InputError(
                f"user {storage.user} may not enter {path}, into which HBase moves HFiles; open it (hdfs dfs -chmod "
                f"711 {path}), or load with --via puts"
            )
    elsewhere = "" if root == settings.hbase.root else f"; set hbase.root to {root}, where `load` should look for them"
    return f"HFiles can be moved to {staging}{elsewhere}"


def _thrift(settings: Settings) -> str:
    with Connection(settings.hbase.server()) as connection:
        return f"{settings.hbase.thrift}, {len(connection.tables())} tables"
