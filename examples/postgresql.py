"""Run a PostgreSQL server to try things on: in one folder, on loopback, with a password; it can be removed completely.

    python examples/postgresql.py start var/postgresql      prints its URL
    python examples/postgresql.py stop var/postgresql       stops it and removes the folder

PostgreSQL does not run as root. If root runs this script, the server runs as the user `postgres` of Debian's package,
who must be able to enter the folder.
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
    """A PostgreSQL server.

    Args:
        folder: where all its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"

    @property
    def url(self) -> str:
        """The URL with the password, which is kept in a file that only the server's user may read."""
        return (self.folder / "url").read_text()

    def start(self, **settings: str) -> str:
        """Start the server unless it is running; create it first if there is none.

        Args:
            settings: settings of `postgresql.conf`.

        Returns:
            The URL.
        """
        if not self.folder.exists():
            self._create()
        if not (self.data / "postmaster.pid").exists():
            self.begin(**settings)
        return self.url

    def _create(self) -> None:
        self.folder.mkdir(parents=True)
        password_file = self._write_secret("password", secrets.token_hex(16))
        self._give_to_user()
        self.run("initdb", f"--pgdata={self.data}", f"--username={USER}", f"--pwfile={password_file}", *_INITDB_OPTIONS)
        self._write_secret("url", f"postgresql://{USER}:{password_file.read_text()}@127.0.0.1:{_free_port()}/postgres")
        self._give_to_user()

    def copy(self, folder: Path, **settings: str) -> "PostgreSQL":
        """Start a read replica of this server in another folder; `settings` as for `start`."""
        replica = PostgreSQL(folder)
        replica.folder.mkdir(parents=True)
        replica._write_secret("url", re.sub(r":\d+/", f":{_free_port()}/", self.url))
        replica._give_to_user()
        port, password = re.search(r":(\d+)/", self.url), (self.folder / "password").read_text()
        assert port
        server = ["--host=127.0.0.1", f"--port={port[1]}", f"--username={USER}"]
        options = [f"--pgdata={replica.data}", "--write-recovery-conf", "--checkpoint=fast"]
        self.run("pg_basebackup", *server, *options, PGPASSWORD=password)
        replica.begin(**settings)
        return replica

    def begin(self, **settings: str) -> None:
        """Start the server, which must exist and not run; `settings` as for `start`."""
        port = re.search(r":(\d+)/", self.url)
        assert port
        settings = {"port": port[1], "listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self.run("pg_ctl", "start", "-w", "-s", f"-D{self.data}", f"-l{self.folder / LOG}", f"-o{options}")

    def end(self) -> None:
        """Stop the server without waiting for its sessions; keep the files."""
        self.run("pg_ctl", "stop", "-w", "-s", "-mfast", f"-D{self.data}")

    def remove(self) -> None:
        """Stop the server and remove its folder."""
        if (self.data / "postmaster.pid").exists():
            self.end()
        shutil.rmtree(self.folder)

    def run(self, program: str, *arguments: str, **variables: str) -> str:
        """Run one of PostgreSQL's programs, as the user `postgres` if this is root.

        Args:
            program: its name.
            arguments: its arguments.
            variables: added to its environment.

        Returns:
            What the program printed; nothing of `pg_ctl`.

        Raises:
            SystemExit: PostgreSQL is not installed, or the program failed.
        """
        command = [find_program(program), *arguments]
        as_user: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        # The server inherits the standard output of pg_ctl and keeps it open, so a pipe would never end.
        output = None if program == "pg_ctl" else subprocess.PIPE
        result = subprocess.run(
            command,
            cwd="/",
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            **as_user,
        )
        if result.returncode:
            raise SystemExit(f"{program} failed: {result.stderr or f'see {self.folder / LOG}'}")
        return result.stdout or ""

    def _give_to_user(self) -> None:
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, USER, USER)

    def _write_secret(self, name: str, text: str) -> Path:
        path = self.folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        return path


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[PostgreSQL]:
    """Run a server in a folder while the context is open, then remove it; `settings` as for `PostgreSQL.start`."""
    server = PostgreSQL(folder)
    try:
        server.start(**settings)
        yield server
    finally:
        if server.folder.exists():
            server.remove()


_INITDB_OPTIONS: Sequence[str] = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions")


def find_program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs; Debian does not put the server's programs on the PATH.

    Raises:
        SystemExit: the program is not installed.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    path = str(installed[-1]) if installed else shutil.which(name)
    if not path:
        raise SystemExit(f"{name} is not installed; install PostgreSQL (apt-get install postgresql)")
    return path


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
