"""A real browser for the pages that cema writes: Chromium without a screen, on a page served from loopback."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
FRAME = """<!doctype html><iframe src="{page}" width="{width_px}" height="900" onload="
  const page = this.contentDocument.documentElement;
  const wide = [...page.querySelectorAll('svg, table')].map(node => node.getBoundingClientRect().width > 0);
  document.body.dataset.seen = [page.scrollWidth, wide.length, wide.every(Boolean)].join(' ')"></iframe>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Callable[[Path, int], tuple[int, int]]]:
    """look(page, width_px) -> (width in px that the page takes, number of its tables and plots), all of them drawn."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    folder = tmp_path / "pages"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def seen(page: Path, width_px: int) -> tuple[int, int]:
        shutil.copy(page, folder / "page.html")
        (folder / "frame.html").write_text(FRAME.format(page="page.html", width_px=width_px))
        address = f"http://127.0.0.1:{server.server_address[1]}/frame.html"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={tmp_path}/user"]
        dom = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, check=True).stdout
        found = re.search(r'data-seen="(\d+) (\d+) true"', dom)
        assert found, dom
        return int(found[1]), int(found[2])

    yield seen
    server.shutdown()
    server.server_close()
    thread.join()
