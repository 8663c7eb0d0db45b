"""`predictions serve` for the tests: a real process on a free port of loopback."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import requests
from conftest import CHECKOUT

READY_SECONDS = 60


class Service:
    """A running service, and requests to it."""

    def __init__(self, process, url, log):
        self.process = process
        self.url = url
        self._log = log

    @property
    def log(self):
        return self._log.read_text()

    def get(self, path, **options):
        return requests.get(self.url + path, timeout=60, **options)

    def post(self, ids, **options):
        return requests.post(f"{self.url}/records", json={"ids": ids}, timeout=60, **options)


@contextmanager
def service(settings, folder, *options, program=("-m", "predictions"), **environment):
    """Run `predictions serve`, or what else the program is; its stderr goes to a file in the folder."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, *program, "--settings", str(settings), "serve", "--port", "0", *options]
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            command, stderr=stderr, env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}, cwd=folder
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not (address := re.search(r"serving on (http://\S+?)[,;]", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Service(process, address[1].replace("0.0.0.0", "127.0.0.1"), log)
    finally:
        process.kill()
        process.wait()
