"""A PostgreSQL server of one's own: in a temporary folder, on a Unix socket, without a port, stopped at the end."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["Server", "missing"]

_PATIENCE = 60.0  # seconds until a server has to answer
_SETTINGS = ("listen_addresses=", "fsync=off", "shared_buffers=64MB", "max_connections=20")


def binaries() -> Path | None:
    """The folder of initdb and postgres: of the newest version that is installed, or None."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[-3]))
    on_path = shutil.which("initdb")
    return Path(found[-1]).parent if found else Path(on_path).resolve().parent if on_path else None


def missing() -> str:
    """Why no server can be started here; empty where one can."""
    if binaries() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (the extra postgres)"
    return ""


def _user() -> str | None:
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


class Server:
    """A running server: `url` of its database, `kill()` (all its processes at once), `start()` again."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="pg")
        self.data, self.process = f"{self.folder}/data", None
        self._as = {"user": _user()} if os.getuid() == 0 else {}
        if self._as:
            shutil.chown(self.folder, self._as["user"])
        done = self._run(
            "initdb", "-D", self.data, "-A", "trust", "-U", "weightspace", "-N", "-E", "UTF8", "--locale=C"
        )
        if done.returncode:
            raise RuntimeError(f"initdb: {done.stderr[-500:]}")

    @property
    def url(self) -> str:
        return f"postgresql://weightspace@/postgres?host={self.folder}"

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(binaries() / program), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", env=self._environment(), **self._as)

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": self.folder}

    def start(self) -> None:
        """Start it, again where memory of a server that was killed is not yet free."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                self._begin()
            if self._run("pg_isready", "-h", self.folder).returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError(f"the server did not start: {Path(self.folder, 'log').read_text()[-500:]}")

    def _begin(self) -> None:
        words = [word for setting in _SETTINGS for word in ("-c", setting)]
        command = [str(binaries() / "postgres"), "-D", self.data, "-k", self.folder, *words]
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", env=self._environment(), start_new_session=True, **self._as
            )

    def kill(self) -> None:
        """End it as a power cut would, with the processes that serve its connections, each in a session of its own."""
        if self.process is not None:
            for pid in [self.process.pid, *_children(self.process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # a fast shutdown
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    """The processes that a process started."""
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]
