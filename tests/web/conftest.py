"""A running server, and a browser that asks nobody else."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import weightspace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Running:
    """A server in a process of its own. `page`: the address that it printed; `token` and `base` are its parts."""

    arguments: list[str]
    folder: Path
    token: str = "a-token-of-the-tests-0123"
    port: str = "0"
    page: str = ""
    process: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)
    listener: threading.Thread | None = None

    @property
    def base(self) -> str:
        return self.page.partition("/#")[0]

    def start(self) -> "Running":
        command = [sys.executable, "-m", "weightspace", "serve", "--port", self.port, "--no-browser", *self.arguments]
        source = str(Path(weightspace.__file__).parents[1])
        environment = {**os.environ, "WEIGHTSPACE_TOKEN": self.token, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"http://\S+#token=\S+", line):
                self.page = found[0]
                break
        if not self.page:
            self.stop(kill=True)
            raise AssertionError("".join(self.said))
        self.port = self.page.partition("/#")[0].rpartition(":")[2]
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        return self

    def _listen(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        self.said += list(self.process.stdout)

    def stop(self, kill: bool = False) -> None:
        if self.process is not None:
            (self.process.kill if kill else self.process.terminate)()
            self.process.wait(20)
            if self.listener is not None:
                self.listener.join(5)
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without an atlas."""
    running = Running([], tmp_path_factory.mktemp("served")).start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """Debian's chromium under playwright."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page of a browser, what it asked for, and what its console said that is bad."""

    page: object
    asked: list[str]
    bad: list[str]

    def strangers(self, base: str) -> list[str]:
        """Requests to anybody but the server."""
        return [url for url in self.asked if not url.startswith((base, base.replace("http", "ws"), "data:", "blob:"))]


def opened(chromium: object, width: int = 1280, height: int = 900, **how: object) -> Tab:
    """A new tab."""
    page = chromium.new_context(viewport={"width": width, "height": height}, **how).new_page()  # type: ignore
    tab = Tab(page, [], [])
    page.on("request", lambda request: tab.asked.append(request.url))
    page.on("websocket", lambda socket: tab.asked.append(socket.url))
    page.on("pageerror", lambda error: tab.bad.append(str(error)))
    page.on("console", lambda said: tab.bad.append(said.text) if said.type == "error" else None)
    return tab


@pytest.fixture
def tab(chromium: object) -> Iterator[Tab]:
    """A new tab, closed afterwards. A test asserts what it wants of `tab.bad` and `tab.strangers`."""
    one = opened(chromium)
    yield one
    one.page.context.close()  # type: ignore
