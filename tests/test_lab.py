"""`python course.py lab` brings up a real JupyterLab that serves the first notebook."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from test_course_py import load

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60


@pytest.fixture
def ready_environment():
    """The environment of this interpreter, stamped for the time of the test: course.py must not install into it."""
    folder = Path(sys.prefix)
    if not (folder / "pyvenv.cfg").is_file():
        pytest.skip("this interpreter is not in a virtual environment")
    course = load(ROOT)
    if course.state(folder) == "ready":
        yield folder
        return
    file = course.stamp_file(folder)
    before = file.read_bytes() if file.exists() else None
    file.write_text(course.stamp(folder), encoding="utf-8")
    yield folder
    file.unlink() if before is None else file.write_bytes(before)


def get(url, end):
    """Status and body; asks again until `end` where nobody answers, as on a busy machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_lab_serves_the_first_notebook_to_who_has_the_token(ready_environment, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "course.py"), "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    log = tmp_path / "lab.log"
    variables = {**os.environ, "COURSE_VENV": str(ready_environment), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    with open(log, "wb") as file:
        lab = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + SECONDS
        token = None
        while not token and time.monotonic() < end and lab.poll() is None:
            time.sleep(0.2)
            token = re.search(rf"127\.0\.0\.1:{port}/lab/tree/(\S+)\?token=(\w+)", log.read_text("utf-8", "replace"))
        assert token, log.read_text("utf-8", "replace")
        assert token[1] == "notebooks/00_start_here.ipynb"
        address = f"http://127.0.0.1:{port}/api/contents/{token[1]}"
        status, body = get(f"{address}?token={token[2]}", end)
        assert status == 200 and json.loads(body)["type"] == "notebook"
        assert get(address, end)[0] == 403, "without the token nothing is served"
    finally:
        lab.terminate()
        try:
            lab.wait(20)
        except subprocess.TimeoutExpired:
            lab.kill()
            lab.wait(20)
