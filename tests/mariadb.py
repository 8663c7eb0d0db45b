"""A MariaDB server for the tests: Debian's package, with its files in one folder, on loopback, with a password.

The server does not run as root: if the tests do, it runs as the user `mysql` of Debian's package.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pymysql

USER = "mysql"
READY_SECONDS = 60


class MariaDB:
    """A server in a folder.

    Args:
        folder: for its files, made here; `USER` must be able to enter the folder above it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.password = "p%&" + secrets.token_hex(8)  # has characters that a URL must quote
        self._process: subprocess.Popen | None = None
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        folder.mkdir()
        statements = [
            f"CREATE OR REPLACE USER predictions@'127.0.0.1' IDENTIFIED BY '{self.password}'",
            "GRANT ALL ON *.* TO predictions@'127.0.0.1' WITH GRANT OPTION",
            f"ALTER USER root@localhost IDENTIFIED BY '{self.password}'",
            "CREATE DATABASE IF NOT EXISTS test CHARACTER SET utf8mb4",
        ]
        (folder / "init.sql").write_text("".join(f"{statement};\n" for statement in statements))
        self._options = ["--no-defaults", f"--datadir={folder / 'data'}"]
        if os.geteuid() == 0:
            for path in (folder, folder / "init.sql"):
                shutil.chown(path, USER, USER)
            self._options.append(f"--user={USER}")
        install = [find_program("mariadb-install-db"), *self._options, "--auth-root-authentication-method=normal"]
        subprocess.run(install, check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        files = [f"--socket={self.folder / 'socket'}", f"--init-file={self.folder / 'init.sql'}"]
        command = [find_program("mariadbd"), *self._options, *options, *files, "--innodb-flush-log-at-trx-commit=0"]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MariaDB does not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def connect(self, **options: Any) -> pymysql.Connection:
        """Open a connection to its database `test`."""
        defaults = {"user": "predictions", "password": self.password, "database": "test", "autocommit": True}
        return pymysql.connect(host="127.0.0.1", port=self.port, **defaults | options)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except pymysql.OperationalError:  # the server listens before it has run the init file
            return False
        return True

    def stop(self) -> None:
        """Kill the server; its files stay."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def remove(self) -> None:
        """Kill the server and remove the folder."""
        self.stop()
        shutil.rmtree(self.folder)


def find_program(name: str) -> str:
    """Return the path of one of MariaDB's programs; the server's folder is not on every user's PATH.

    Raises:
        RuntimeError: the program is not installed.
    """
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if not path:
        raise RuntimeError(f"{name}: not found; install MariaDB (apt-get install mariadb-server)")
    return path
