"""A PostgreSQL of one's own, to try things on: in a folder, on loopback, with a password; removed without a trace.

    python examples/postgresql.py start var/postgresql      prints its URL
    python examples/postgresql.py stop var/postgresql       stops it and removes the folder

PostgreSQL does not run as root: where this does, it is the user `postgres` of Debian's package who runs it, and the
folder must lie where that user may go.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER = "postgres"
LOG = "postgresql.log"


class PostgreSQL:
    """A server in a folder.

    Args:
        folder: where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"

    @property
    def url(self) -> str:
        """Where it answers, with the password: for whoever may read the folder's files."""
        return (self.folder / "url").read_text()

    def start(self, **settings: str) -> str:
        """Make it, unless that was done, and start it, unless it runs.

        Args:
            settings: of `postgresql.conf`.

        Returns:
            Its URL.
        """
        if not self.folder.exists():
            self._make()
        if not (self.data / "postmaster.pid").exists():
            self.begin(**settings)
        return self.url

    def _make(self) -> None:
        self.folder.mkdir(parents=True)
        password = self._secret("password", secrets.token_hex(16))
        self._own()
        self.run("initdb", f"--pgdata={self.data}", f"--username={USER}", f"--pwfile={password}", *_INIT)
        self._secret("url", f"postgresql://{USER}:{password.read_text()}@127.0.0.1:{_free_port()}/postgres")
        self._own()

    def copy(self, folder: Path, **settings: str) -> "PostgreSQL":
        """Start a read replica of it in another folder, which follows it; `settings` as of `start`."""
        replica = PostgreSQL(folder)
        replica.folder.mkdir(parents=True)
        replica._secret("url", re.sub(r":\d+/", f":{_free_port()}/", self.url))
        replica._own()
        port, password = re.search(r":(\d+)/", self.url), (self.folder / "password").read_text()
        assert port
        place = ["--host=127.0.0.1", f"--port={port[1]}", f"--username={USER}"]
        options = [f"--pgdata={replica.data}", "--write-recovery-conf", "--checkpoint=fast"]
        self.run("pg_basebackup", *place, *options, PGPASSWORD=password)
        replica.begin(**settings)
        return replica

    def begin(self, **settings: str) -> None:
        """Start it again after `end`; `settings` as of `start`."""
        port = re.search(r":(\d+)/", self.url)
        assert port
        given = {"port": port[1], "listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}
        options = " ".join(f"-c {name}='{value}'" for name, value in given.items())
        self.run("pg_ctl", "start", "-w", "-s", f"-D{self.data}", f"-l{self.folder / LOG}", f"-o{options}")

    def end(self) -> None:
        """Stop it, at once; its files stay."""
        self.run("pg_ctl", "stop", "-w", "-s", "-mfast", f"-D{self.data}")

    def remove(self) -> None:
        """Stop it and remove the folder."""
        if (self.data / "postmaster.pid").exists():
            self.end()
        shutil.rmtree(self.folder)

    def run(self, program: str, *arguments: str, **variables: str) -> str:
        """Run one of PostgreSQL's programs as who may, with variables in its environment; return what it prints.

        Raises:
            SystemExit: PostgreSQL is not installed, or the program failed.
        """
        command = [find_program(program), *arguments]
        as_user: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        # The server keeps what it is given as stdout: its log is a file, and a pipe would never end.
        log = None if program == "pg_ctl" else subprocess.PIPE
        done = subprocess.run(
            command,
            cwd="/",
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            **as_user,
        )
        if done.returncode:
            raise SystemExit(f"{program} failed: {done.stderr or self.folder / LOG}")
        return done.stdout or ""

    def _own(self) -> None:
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, USER, USER)

    def _secret(self, name: str, text: str) -> Path:
        path = self.folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        return path


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[PostgreSQL]:
    """Run one in a folder for as long as the context is open, and remove it; `settings` as of `PostgreSQL.start`."""
    server = PostgreSQL(folder)
    try:
        server.start(**settings)
        yield server
    finally:
        if server.folder.exists():
            server.remove()


_INIT: Sequence[str] = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions")


def find_program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs: Debian keeps the server's out of the PATH.

    Raises:
        SystemExit: it is not installed.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    found = str(installed[-1]) if installed else shutil.which(name)
    if not found:
        raise SystemExit(f"{name}: not there; please install PostgreSQL (apt-get install postgresql)")
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["start", folder]:
            print(PostgreSQL(Path(folder)).start())
        case ["stop", folder]:
            PostgreSQL(Path(folder)).remove()
        case _:
            raise SystemExit("usage: postgresql.py start|stop FOLDER")
