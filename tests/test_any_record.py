"""Any text and any ID, from a database through the real engine to the lookup; failed records and unreadable lines."""

import sqlite3
import uuid
from contextlib import closing
from dataclasses import replace
from zlib import crc32

import pytest
from conftest import manifest_of

from predictions.lookup.client import Client

pytestmark = pytest.mark.cluster

SETTINGS = """
name = "odd"
[database]
url = "sqlite:///odd.db"
table = "odd"
id = "id"
[model]
label = "label"
features = ["text", "number", "day"]
params = { max_iter = 5 }
[gates]
max_failed = 0.1
[hadoop]
storage = "storage"
"""

TEXTS = [
    *(
        "tab\there",
        "cr\rhere",
        "lf\nhere",
        "crlf\r\nhere",
        "nul\0here",
        "back\\slash",
        "\\N",
        "\\t",
        'quo"te',
        "quo'te",
    ),
    *(
        "line\u2028separator",
        "next\x85line",
        "\ufeffbom",
        "emoji \U0001f6f0\ufe0f",
        "",
        " ",
        "NA",
        "nan",
        "True",
        "007",
    ),
    "a megabyte " + "x" * (1 << 20),
]
IDS = ["007", "7", " 7", "1e3", "1000", str(2**63 - 1), str(uuid.uuid4()), "\u00e9", "e\u0301", "with\ttab", "with\nlf"]
IDS += ["with\rcr", "nul\0id", "back\\slash", "\\N", "\U0001f6f0", "x" * 32_000]
PREFIX = crc32(b"same-0") >> 16
ONE_PREFIX = [f"same-{n}" for n in range(400_000) if crc32(b"same-%d" % n) >> 16 == PREFIX][:5]
FAILING = {  # as SQL, since not all of them can be Python values
    "no-number": ("'a'", "'twelve'", "NULL", "number: not a number"),
    "infinite": ("'a'", "9e999", "NULL", "number: not a finite number"),
    "too-large": ("'a'", "1e300", "NULL", "number: too large a number"),
    "no-utf-8": ("CAST(x'61ff' AS TEXT)", "1", "NULL", "text: not valid UTF-8"),
    "no-day": ("'a'", "1", "'2026-02-30'", "day: a date out of range"),
    "no-date": ("'a'", "1", "'tomorrow'", "day: not a date"),
}


def make_database(path):
    """Create a table of 200 ordinary records and all the odd ones; return the texts of the odd ones by ID."""
    ids = [*IDS, *ONE_PREFIX, *(f"text-{number}" for number in range(len(TEXTS)))]
    texts = {record_id: TEXTS[number % len(TEXTS)] for number, record_id in enumerate(ids)}
    assert len(ONE_PREFIX) == 5
    assert set(texts.values()) == set(TEXTS)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE odd (id TEXT PRIMARY KEY, text TEXT, number REAL, day DATE, label INTEGER)")
        for number in range(200):
            row = (f"ordinary-{number}", "ab"[number % 2], number, f"2026-11-{number % 28 + 1:02}", number % 2)
            connection.execute("INSERT INTO odd VALUES (?, ?, ?, ?, ?)", row)
        for record_id, text in texts.items():
            connection.execute("INSERT INTO odd VALUES (?, ?, 1, NULL, NULL)", (record_id, text))
        for record_id, (text, number, day, _error) in FAILING.items():
            connection.execute(f"INSERT INTO odd VALUES (?, {text}, {number}, {day}, NULL)", (record_id,))
    return texts


def test_any_text_and_any_id_survive(project, tmp_path):
    texts = make_database(tmp_path / "odd.db")
    made = project(SETTINGS, tmp_path)
    made.succeed("run", code=1)
    folder = made.storage.release()
    counts = manifest_of(folder).scored
    assert (counts.scored, counts.failed) == (200 + len(texts), len(FAILING))
    scored = made.scored(folder)
    keys = [line.partition(b"\t")[0] for line in scored.split(b"\n")[:-1]]
    assert keys == sorted(set(keys))
    client = Client(made.settings)
    for record_id, text in texts.items():
        answer = client.get(record_id)
        assert (answer.id, answer.status) == (record_id, "fresh"), answer
        assert (answer.record["id"], answer.record["text"]) == (record_id, text)
        assert answer.prediction in (0, 1)
    for record_id, (*_values, error) in FAILING.items():
        answer = client.get(record_id)
        assert (answer.status, answer.error, answer.prediction) == ("failed", error, None)
    for record_id in ("8", "7 ", "1000.0", "E\u0301", "with tab", "same-x"):
        assert client.get(record_id).status == "missing"

    # The local runner gives the same lines.
    folder.remove("scored")
    folder.write_manifest(replace(manifest_of(folder), scored=None))
    made.succeed("score", "--runner", "local", code=1)
    assert made.scored(folder) == scored


def test_unreadable_lines_end_the_run_and_are_kept(project, tmp_path):
    make_database(tmp_path / "odd.db")
    made = project(SETTINGS, tmp_path)
    with closing(sqlite3.connect(tmp_path / "odd.db")) as connection, connection:
        connection.execute("INSERT INTO odd VALUES ('', 'kept', 1, NULL, NULL)")
        connection.execute("INSERT INTO odd VALUES (?, 'kept too', 1, NULL, NULL)", ("y" * 32_763,))
    ended = made.run("run")
    assert ended.returncode == 3, ended.stderr
    folder = made.storage.release()
    assert f"release {folder.release} is not activated; repeat the stage that failed" in ended.stderr
    path = f"{folder.path}/unreadable.txt"
    assert f"2 of {manifest_of(folder).export.rows} lines could not be read" in ended.stderr
    assert path in ended.stderr
    head, *lines = folder.read("unreadable.txt").decode().split("\n")[:-1]
    assert head == "split\tline\treason\ttext"
    exported = folder.read("export/part-00000").decode(errors="replace").split("\n")
    for line, reason in zip(lines, ("the ID is empty", "the ID is 32,763 bytes long"), strict=True):
        _split, number, stated_reason, text = line.split("\t", 3)
        assert stated_reason.startswith(reason)
        assert exported.count(text) == 1
        assert int(number) > 0
    assert not folder.has("scored")
    assert made.run("load").returncode == 2  # nothing to load
