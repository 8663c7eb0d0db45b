"""`predictions serve` as a process on the live cluster: its answers, its refusals, and how it stops."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from conftest import CHECKOUT
from services import service
from test_lookup import FROM_HELL

from predictions.service.schemas import MAX_IDS
from predictions.service.server import _listen

pytestmark = pytest.mark.cluster

TOKEN = "a-token-of-many-characters"
LEAKS = ("Traceback", 'File "', "orders.db", "127.0.0.1:", "site-packages")


@pytest.fixture(scope="module")
def running(served, tmp_path_factory):
    with service(served.path, tmp_path_factory.mktemp("service")) as running:
        yield running


def raw(running, request):
    """Send a request as bytes; return the status and the body of the response."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        with suppress(ConnectionResetError):  # a server that refuses a long request does not read all of it
            return response.status, response.read()
        return response.status, b""


def test_a_record_is_answered_as_by_the_command_line(running, served):
    (expected,) = served.get("order-001")
    answer = running.get("/records/order-001").json()
    assert list(answer) == list(expected)
    assert {**answer, "age": 0} == {**expected, "age": 0}
    answers = running.post(["order-002", "no-order", 7, "order-001"]).json()["answers"]
    assert [(answer["id"], answer["status"]) for answer in answers] == [
        ("order-002", "fresh"),
        ("no-order", "missing"),
        ("7", "missing"),
        ("order-001", "fresh"),
    ]
    assert running.post([]).json() == {"answers": []}


def test_ids_from_hell_by_path_and_by_body(running):
    for record_id in set(FROM_HELL) - {"\udcff"}:  # not valid text
        response = running.post([record_id])
        assert (response.status_code, response.json()["answers"][0]["id"]) == (200, record_id)
        assert response.json()["answers"][0]["status"] == "missing"
        if len(record_id) < 10_000:  # the server limits the length of a path
            path = f"/records/{quote(record_id, safe='')}"
            status, body = raw(running, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (status, json.loads(body)["id"]) == (200, record_id)
    for path, status in (("/records/%ff", 400), ("/records/%ed%a0%80", 400), ("/records/" + "x" * 1_000_000, 400)):
        actual, body = raw(running, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert actual == status
        assert not any(leak.encode() in body for leak in LEAKS)
    for path in ("/%72ecords/order-001", "/records%2forder-001"):
        assert raw(running, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())[0] == 404
    # These paths lead to no other file and no other route.
    for path in ("/../setup.cfg", "/page/../../app.py", "/%2e%2e/app.py", "//etc/passwd"):
        assert raw(running, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"ids": ["\\ud800"]}', 422, "surrogate"),
        ('{"ids": [null]}', 422, "body.ids.0"),
        ('{"ids": [1.5]}', 422, "body.ids.0"),
        ('{"ids": [true]}', 422, "body.ids.0"),
        ('{"ids": "order-001"}', 422, "list"),
        ('{"ids": [], "sql": "x"}', 422, "body.sql"),
        ("{}", 422, "body.ids"),
        (json.dumps({"ids": ["x"] * (MAX_IDS + 1)}), 422, "at most 1000"),
        ('{"ids": [' + "9" * 5_000 + "]}", 400, "body"),
        ("[" * 100_000, 400, "body"),
        ("not json", 422, "JSON"),
        ('{"ids": ["' + "x" * 5_000_000 + '"]}', 413, "Large"),
    ],
)
def test_an_invalid_lookup_is_refused_in_one_line(running, body, status, message):
    answer = requests.post(
        f"{running.url}/records", data=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert len(answer.text) < 500
    assert not any(leak in answer.text for leak in LEAKS)


def test_other_paths_and_methods(running):
    assert running.get("/nothing").status_code == 404
    assert running.get("/records").status_code == 405
    assert requests.delete(f"{running.url}/records/order-001", timeout=60).status_code == 405
    assert running.get("/healthz").json() == {"status": "ok", "unavailable": []}
    answer = running.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    # A page of another site whose name was made to lead to this machine.
    refused = running.get("/records/order-001", headers={"Host": "elsewhere.example"})
    assert (refused.status_code, "nosniff" in refused.headers.values()) == (400, True)


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "::1"])
def test_any_address_of_loopback(served, tmp_path, host):
    with service(served.path, tmp_path, "--host", host) as running:
        assert running.get("/records/order-001").json()["status"] == "fresh"


def test_releases_with_their_state_and_distribution(running, served):
    (answer,) = running.get("/releases").json()["releases"]
    (listed,) = map(json.loads, served.succeed("releases", "--json").stdout.splitlines())
    assert {key: answer[key] for key in answer.keys() & listed.keys() - {"model"}} == {
        key: listed[key] for key in answer.keys() & listed.keys() - {"model"}
    }
    assert answer["model"].startswith(listed["model"])
    assert (answer["role"], answer["label"]) == ("current", "paid")
    assert sum(answer["distribution"]["classes"].values()) == 400


def test_answers_are_counted_for_prometheus(running):
    def count(name):
        (line,) = (line for line in running.get("/metrics").text.splitlines() if line.startswith(name))
        return float(line.rpartition(" ")[2])

    fresh, missing = 'predictions_answers_total{status="fresh"}', 'predictions_answers_total{status="missing"}'
    requests_counter = 'predictions_request_seconds_count{code="200",route="/records"}'
    running.post(["order-001"])
    before = count(fresh), count(missing), count(requests_counter)
    running.post(["order-001", "order-002", "no-order"])
    assert (count(fresh), count(missing), count(requests_counter)) == (before[0] + 2, before[1] + 1, before[2] + 1)
    assert count("predictions_release_timestamp_seconds") > 1.7e9


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_head():
    """With Nagle's algorithm, an answer on a kept connection would wait for 40 ms."""
    with (
        closing(_listen("127.0.0.1", 0)) as listening,
        closing(socket.create_connection(listening.getsockname())),
        closing(listening.accept()[0]) as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_schemathesis_finds_nothing(running, full, tmp_path):
    command = "from schemathesis.cli import schemathesis; schemathesis()"
    options = ["--checks", "all", "--no-color", "--workers", "2", "--max-examples", "300" if full else "20"]
    process = subprocess.run(
        [sys.executable, "-c", command, "run", *options, f"{running.url}/openapi.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stdout
    assert "No issues found" in process.stdout


# Access: tokens and addresses.


def test_clients_without_the_token_are_refused_but_see_the_page(served, tmp_path):
    with service(served.path, tmp_path, "--host", "0.0.0.0", PREDICTIONS_TOKEN=TOKEN) as running:
        for path in ("/records/order-001", "/releases", "/metrics"):
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
                answer = running.get(path, headers=headers)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert TOKEN not in answer.text
            assert running.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert running.post(["order-001"]).status_code == 401
        assert running.post(["order-001"], headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        for path in ("/", "/page.js", "/page.css", "/healthz"):
            assert running.get(path).status_code == 200
        assert TOKEN not in running.log
        assert TOKEN not in Path(f"/proc/{running.process.pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--host", "0.0.0.0"], "", "set PREDICTIONS_TOKEN"),
        (["--host", "0.0.0.0"], "short", "16 characters"),
        (["--host", "0.0.0.0"], "with spaces, and 日本", "without spaces"),
        (["--host", "a..b"], "", "a..b:0"),
        (["--max-age", "nan"], "", "max_age: nan"),
        (["--host", "no-such-host.invalid"], "", "no-such-host.invalid:0"),
        (["--host", "192.0.2.1"], TOKEN, "choose another with --host and --port"),
    ],
)
def test_options_that_it_must_not_or_cannot_serve_with_are_refused(served, options, token, message):
    ended = served.run("serve", "--port", "0", *options, PREDICTIONS_TOKEN=token)
    assert (ended.returncode, message in ended.stderr, ended.stderr.count("\n")) == (2, True, 1), ended.stderr


def test_a_taken_port_is_named(served, running):
    port = running.url.rpartition(":")[2]
    ended = served.run("serve", "--port", port)
    assert (ended.returncode, f"127.0.0.1:{port}: Address already in use" in ended.stderr) == (2, True), ended.stderr


# Stopping, outages and wrong settings.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_progress_are_answered_before_it_stops(served, tmp_path, number):
    with service(served.path, tmp_path) as running:
        outcomes, stopping = [], threading.Event()

        def ask():
            with requests.Session() as session:
                while True:
                    try:
                        answer = session.post(f"{running.url}/records", json={"ids": ["order-001"] * 500}, timeout=60)
                    except requests.ConnectionError as error:
                        # Refused, or the idle connection was closed just as the request was sent. If the service had
                        # given a request up, the log would say so.
                        outcomes.append("refused" if stopping.is_set() else str(error))
                        return
                    outcomes.append((answer.status_code, len(answer.json()["answers"])))
                    time.sleep(0.02)  # so that some connections are idle when it stops

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 12:
            time.sleep(0.05)
        stopping.set()
        running.process.send_signal(number)
        assert running.process.wait(30) == 0
        for thread in threads:
            thread.join()
        assert set(outcomes) == {(200, 500), "refused"}
        assert running.log.endswith("stopped\n")
        assert not re.search("Traceback|Cancel", running.log)


def test_outages_are_reported_without_addresses(served, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed_port = listener.getsockname()[1]
    environment = {"PREDICTIONS_HBASE_THRIFT": f"127.0.0.1:{closed_port}", "PREDICTIONS_HBASE_TIMEOUT": "0.3"}
    with service(served.path, tmp_path, **environment) as running:
        response = running.get("/records/order-001")
        answer = response.json()
        assert (response.status_code, answer["status"], answer["unavailable"]) == (200, "unavailable", ["hbase"])
        assert answer["record"]["id"] == "order-001"
        assert answer["error"] == "hbase did not answer in time"
        health = running.get("/healthz")
        assert (health.status_code, health.json()["unavailable"]) == (503, ["hbase"])
        releases = running.get("/releases")
        assert (releases.status_code, set(releases.json())) == (503, {"error"})
        for refusal in (response, health, releases):
            assert not any(leak in refusal.text for leak in LEAKS)
        # Once for each failed answer, however often HBase was tried.
        assert running.log.count(f"127.0.0.1:{closed_port}") == 2


def test_wrong_settings_are_explained_to_the_operator_only(served, tmp_path):
    with service(served.path, tmp_path, PREDICTIONS_DATABASE_ID="no_such_column") as running:
        answer = running.get("/records/order-001")
        assert (answer.status_code, answer.json()) == (
            503,
            {"error": "the service is misconfigured; see the log of the service"},
        )
        assert "no column 'no_such_column'" in running.log


def test_without_its_libraries_it_says_what_to_install(served):
    code = "import sys; sys.modules['uvicorn'] = None; from predictions.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "--settings", str(served.path), "serve"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert (ended.returncode, "predictions[serve]" in ended.stderr, ended.stderr.count("\n")) == (2, True, 1), (
        ended.stderr
    )
