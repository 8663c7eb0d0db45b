"""Export: one snapshot of the database into part files of record lines, and the release's first manifest."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from predictions import rowkey
from predictions.database import open_database
from predictions.errors import InputError
from predictions.records import NULL, id_digest, write_rows
from predictions.settings import Settings
from predictions.storage import MANIFEST_FORMAT, ReleaseFolder, Storage

PART_BYTES = 128 << 20  # a part file is closed at the first block that takes it there: one HDFS block, one split


def export(settings: Settings, storage: Storage, progress: Callable[[int, int], None]) -> ReleaseFolder:
    """Start a new release: export every record with its features and its label.

    Args:
        settings: names the source, the ID, the features and the label.
        storage: where the release's folder is made.
        progress: called with the rows written so far and the rows of the snapshot.

    Raises:
        InputError: the source, a column or the IDs are not as they must be; nothing is left behind.
    """
    started = time.monotonic()
    database = open_database(settings.database)
    names = [settings.database.id, *settings.model.features, settings.model.label]
    with database.snapshot(names) as snapshot:
        if not snapshot.rows:
            raise InputError(f"{settings.database.table or 'the query'}: no records to export")
        snapshot_time = datetime.now(UTC)
        folder = storage.new_release()
        rows = labelled = digest = unfit = parts = part_bytes = total_bytes = 0
        file = None
        with folder.writing("export") as temporary:
            try:
                for block in snapshot.blocks():
                    data = write_rows(block)
                    if file is None or part_bytes >= PART_BYTES:
                        if file:
                            file.close()
                        file = folder.create(f"{temporary}/part-{parts:05d}")
                        parts, part_bytes = parts + 1, 0
                    file.write(data)
                    part_bytes += len(data)
                    total_bytes += len(data)
                    rows += len(block)
                    labelled += sum(row[-1] != NULL for row in block)
                    record_ids = [row[0] for row in block]
                    digest = (digest + id_digest(record_ids)) % (1 << 64)
                    unfit += len(rowkey.unfit(record_ids))
                    progress(rows, snapshot.rows)
            finally:
                if file:
                    file.close()
        record_id, *features, label = snapshot.columns
    folder.write_manifest(
        {
            "format": MANIFEST_FORMAT,
            "name": settings.name,
            "release": folder.release,
            "source": settings.database.model_dump(exclude={"url"}, exclude_none=True),
            "id": record_id.as_json(),
            "features": [column.as_json() for column in features],
            "label": label.as_json(),
            "snapshot": {"time": snapshot_time.isoformat(timespec="milliseconds"), "id": None},
            "export": {
                "rows": rows,
                "labelled": labelled,
                "id_digest": f"{digest:016x}",
                "unfit_ids": unfit,
                "parts": parts,
                "bytes": total_bytes,
                "seconds": round(time.monotonic() - started, 3),
            },
        }
    )
    return folder
