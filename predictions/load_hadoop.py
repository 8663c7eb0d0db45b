"""The loader as a Streaming job of map tasks alone: one a part, so that it grows with the cluster."""

from collections.abc import Callable

from hadoop.packing import load_bundle
from hadoop.streaming import Job, find_streaming_jar, require_hadoop, run
from hadoop.yarn import usable_nodes
from loader.plan import Plan
from predictions.errors import InputError
from predictions.settings import Settings
from predictions.storage import ReleaseFolder

BUNDLE = "loader.zip"
PLAN = "load.json"

_PROPERTIES = {
    # A part is one task's, whatever its size.
    "mapreduce.input.fileinputformat.split.minsize": str(1 << 62),
    # A second attempt would do no harm, but it would write the same rows again to a region that is slow already.
    "mapreduce.map.speculative": "false",
}


def load_by_job(
    settings: Settings, folder: ReleaseFolder, plan: Plan, tasks: int | None, progress: Callable[[float], None]
) -> None:
    """Load all parts of a release by a job; one that is done is only read.

    Args:
        settings: where and how the job runs.
        folder: where the part files are, on HDFS.
        plan: of the load; its rate is that of one task.
        tasks: how many at once; by default as many as the cluster can run.
        progress: called with the share that is done, 0 to 1.

    Raises:
        InputError: `hadoop` is not there, or the storage is not HDFS.
        InternalError: the job failed.
        ServiceError: YARN cannot be reached.
    """
    hadoop = require_hadoop(settings.hadoop.bin)
    if not folder.storage.is_hdfs:
        raise InputError(f"hadoop.storage: {folder.storage.folder}: a job on the cluster reads from HDFS only")
    jar = find_streaming_jar(hadoop, settings.hadoop.streaming_jar)
    usable_nodes(hadoop)
    with folder.scratch("load") as scratch:
        for name, data in ((BUNDLE, load_bundle()), (PLAN, plan.to_json().encode())):
            with folder.create(f"{scratch}/{name}") as file:
                file.write(data)
        run(_job(settings, folder, scratch, tasks), hadoop, jar, progress)


def _job(settings: Settings, folder: ReleaseFolder, scratch: str, tasks: int | None) -> Job:
    archives, path = [f"hdfs://{scratch}/{BUNDLE}#lib"], "lib"
    if settings.hadoop.environment:
        archives.append(f"{settings.hadoop.environment.as_uri()}#environment")
        path += ":environment"
    limit = {"mapreduce.job.running.map.limit": str(tasks)} if tasks else {}
    return Job(
        name=f"predictions load {settings.name} {folder.release}",
        input=f"{folder.path}/scored/part-*",
        output=f"{scratch}/output",
        mapper=f"{settings.hadoop.python} -m loader {PLAN}",
        files=[f"hdfs://{scratch}/{PLAN}"],
        archives=archives,
        properties={**_PROPERTIES, **limit, **settings.hadoop.properties},
        environment={"PYTHONPATH": path},
    )
