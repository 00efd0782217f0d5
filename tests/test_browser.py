"""A reader's view: JupyterLab in a headless browser runs a small notebook; its slider moves the picture, and says so
where it cannot.

COURSE_BROWSER_NOTEBOOKS=01,06 adds these notebooks in full; COURSE_BROWSER_SHOTS=folder keeps pictures of all of each.
Skipped where there is no browser that Playwright can drive.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from course_utils.classroom.notebooks import find_notebooks
from course_utils.classroom.site_check import open_browser

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SETTINGS = {  # every cell in the page, also those out of sight; no question about news in a corner
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
MOVES = 20
STDERR = "[data-mime-type='application/vnd.jupyter.stderr']"  # errors of cells, and warnings
FINISHED = """() => {  // a cell that waits has [*], one that was run [1], one behind an error [ ]
    const cells = document.querySelectorAll('.jp-NotebookPanel .jp-CodeCell .jp-InputPrompt')
    const prompts = [...cells].map(cell => cell.textContent)
    return prompts.some(text => /\\d/.test(text)) && !prompts.some(text => text.includes('*'))
}"""
SENTENCE = "figure => figure.querySelector('.explore-sentence').textContent"
TOP = "figure => figure.querySelector('img').offsetTop - figure.offsetTop"
LINE = "figure => figure.querySelector('.explore-line').textContent"
WATCH = """(figure, timeout) => {  // the time from a key press to the next picture, loaded and decoded
    const image = figure.querySelector('img')
    let pressed
    document.addEventListener('keydown', () => { pressed = performance.now() }, {once: true, capture: true})
    window.nextPicture = new Promise((resolve, reject) => {
        setTimeout(() => reject(new Error('no new picture after a key press')), timeout)
        new MutationObserver(async (_, self) => {
            self.disconnect()
            await image.decode()
            resolve(performance.now() - pressed)
        }).observe(image, {attributeFilter: ['src']})
    })
    window.nextPicture.catch(() => {})
}"""


HOLD = """moves => {  // a key held down repeats faster than pictures can be drawn
    const input = document.activeElement
    for (let k = 0; k < moves; k++) {
        input.value = [1, 2, 3, 2, 5][k % 5]
        input.dispatchEvent(new Event('input', {bubbles: true}))
    }
}"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_answers(server, address, log, seconds=120):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with opener.open(address, timeout=5) as answer:
                return answer.status
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab does not answer:\n{log.read_text('utf-8', 'replace')}")


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        try:
            browser = open_browser(playwright)
        except ValueError as error:
            pytest.skip(str(error))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """A JupyterLab with settings of its own: (folder that it serves, function from a file name to its address)."""
    home = tmp_path_factory.mktemp("lab")
    folder, token, port = home / "notebooks", os.urandom(16).hex(), free_port()
    folder.mkdir()
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    variables = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", **{key: str(home / name) for key, name in own.items()}}
    for name in ("COURSE_QUIET", "COURSE_SWEEP_WIDGETS", "PYTEST_CURRENT_TEST"):  # the last hides what workers print
        variables.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
    ]
    if hasattr(os, "getuid") and os.getuid() == 0:
        command.append("--allow-root")
    log = home / "lab.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(command, cwd=home, env=variables, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_it_answers(server, f"http://127.0.0.1:{port}/api/status?token={token}", log)
        yield folder, lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?reset&token={token}"
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)


@pytest.fixture
def page(browser):
    """A page that remembers what went wrong in it, and whom it asked."""
    page = browser.new_page(viewport={"width": 1300, "height": 1500})
    page.wrong, page.asked = [], set()
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.add(request.url))
    page.on("websocket", lambda websocket: page.asked.add(websocket.url))
    yield page
    page.close()


def is_here(url):
    return urlsplit(url).hostname in (None, "127.0.0.1")  # None: data: and blob:


def run_all(page, nb, folder, address, name, seconds=600):
    """Open a notebook without outputs, run it, and return how many seconds it took; every cell has to be run."""
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / name)
    page.goto(address(name), timeout=120_000)
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=120_000)
    page.get_by_text("| Idle").first.wait_for(timeout=120_000)
    start = time.perf_counter()
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    page.wait_for_function(FINISHED, timeout=1000 * seconds)
    assert page.locator(STDERR).all_text_contents() == []
    prompts = page.locator(".jp-NotebookPanel .jp-CodeCell .jp-InputPrompt").all_text_contents()
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    folded = [cell.metadata.get("jupyter", {}).get("source_hidden") for cell in code]  # these show no number
    assert prompts == ["" if hidden else f"[{k}]:" for k, hidden in enumerate(folded, 1)]
    return time.perf_counter() - start


def sliders(page):
    """The live figures that `explore()` made, each with its picture in place; no still is in sight."""
    figures = page.locator(".jp-OutputArea-output figure.explore[data-ready]").all()
    for figure in figures:
        figure.scroll_into_view_if_needed()
        figure.evaluate("async figure => await figure.querySelector('img').decode()")
    assert not any(still.is_visible() for still in page.locator(".explore-still").all())
    return figures


def press(page, figure, control, key, timeout=20_000):
    """Milliseconds from the key to the decoded picture."""
    figure.evaluate(WATCH, timeout)
    control.press(key)
    return page.evaluate("window.nextPicture")


def move(page, figure, control, moves):
    """Press the right arrow until the end of the slider, then the left one, and so on."""
    key, milliseconds = "ArrowRight", []
    for _ in range(moves):
        now, highest = int(control.input_value()), int(control.get_attribute("max"))
        key = "ArrowRight" if now == 0 else "ArrowLeft" if now == highest else key
        milliseconds.append(press(page, figure, control, key))
    return milliseconds


def until(figure, what, text, seconds=30):
    """Wait until the sentence or the line of a figure has `text` in it; "" means that it is empty."""
    end, seen = time.monotonic() + seconds, None
    while time.monotonic() < end:
        seen = figure.evaluate(what)
        if text in seen if text else not seen:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"wanted {text!r}, there is {seen!r}")


def serious(page, selector):
    """What axe-core finds there that keeps people out, in words."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page, context=selector).response["violations"]
    return [violation["help"] for violation in found if violation["impact"] in ("serious", "critical")]


def keep_pictures(page, name):
    """Pictures of the whole notebook, part by part, into the folder COURSE_BROWSER_SHOTS if there is one."""
    if not os.environ.get("COURSE_BROWSER_SHOTS"):
        return
    folder = Path(os.environ["COURSE_BROWSER_SHOTS"]).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    panel = page.locator(".jp-WindowedPanel-outer").first
    height, whole = panel.evaluate("panel => [panel.clientHeight, panel.scrollHeight]")
    for k, top in enumerate(range(0, whole, height - 60)):
        panel.evaluate("(panel, top) => panel.scrollTo({top, behavior: 'instant'})", top)
        page.screenshot(path=folder / f"{name}_{k:02d}.png")


SMALL = [  # what every notebook does: trainings side by side, a picture, a slider, a folded cell
    """
from matplotlib.figure import Figure
from course_utils.classroom import figures
from course_utils.classroom.widgets import explore
from course_utils.experiments.grid import run_grid
from course_utils.runtime import start
run = start("01")
""",
    """
def ends(height, seed):
    return {"end": 10 * height + seed}

rows = run_grid(ends, height=range(1, 10), seed=range(3), jobs=2)
""",
    """
def picture(figure):
    (line,) = figure.subplots().plot([0, 1, 2], [0, 0, 100])

    def update(height):
        line.set_ydata([row["end"] for row in rows if row["height"] == height])
        return f"The line is {height} high."

    return update
""",
    'still = Figure(figsize=(4, 2))\nprint(picture(still)(height=1))\nfigures.show(still, "A line.")',
    "explore(picture, height=range(1, 10))",
]


def small_notebook():
    nb = new_notebook(cells=[new_code_cell(source.strip()) for source in SMALL])
    nb.cells[2].metadata.jupyter = {"source_hidden": True}
    nb.cells[-1].metadata.tags = ["widget"]
    return nb


@pytest.mark.parametrize("number", ["small", *filter(None, os.environ.get("COURSE_BROWSER_NOTEBOOKS", "").split(","))])
def test_a_notebook_runs_and_its_sliders_move_pictures(lab, page, record_property, number):
    folder, address = lab
    path = Path("small.ipynb") if number == "small" else find_notebooks([number])[0]
    nb = small_notebook() if number == "small" else nbformat.read(path, as_version=4)
    widgets = sum("widget" in cell.metadata.get("tags", []) for cell in nb.cells)
    seconds = run_all(page, nb, folder, address, path.name)
    record_property("note", f"{path.stem} in the browser: Run All took {seconds:.0f} s")
    found = sliders(page)
    assert len(found) == widgets > 0
    for k, figure in enumerate(found, 1):
        controls = figure.locator("input").all()
        assert controls, "no slider"
        for control in controls:
            before = figure.evaluate(SENTENCE)
            move(page, figure, control, 1)
            assert figure.evaluate(SENTENCE) != before, "the sentence stays"
        times = move(page, figure, controls[-1], MOVES)
        median, spread = statistics.median(times), f"{min(times):.0f} to {max(times):.0f}"
        record_property("note", f"slider {k}, key to picture: median {median:.0f} ms of {MOVES} moves ({spread})")
    keep_pictures(page, path.stem)
    assert page.wrong == []
    assert [url for url in page.asked if not is_here(url)] == []


# ---- the kernel is slow, busy, new or gone -------------------------------------------------------------------------

PICTURE = """
import time
from course_utils.classroom.widgets import explore
drawn = 0
def picture(figure):
    (line,) = figure.subplots().plot([0, 1], [0, 1])
    def update(height, color="red"):
        global drawn
        drawn += 1
        line.set(ydata=[0, 1 / (7 - height)], color=color)
        time.sleep(4 if height == 5 else 0)
        return f"Height {height}, {color}."
    return update
explore(picture, height=range(1, 8), color=["red", "blue"])
"""


def stands(page, name):
    """Picture, sentence and line as a reader sees them where no slider is alive."""
    still = page.locator(".explore-still")
    still.wait_for(timeout=60_000)
    still.scroll_into_view_if_needed()
    keep_pictures(page, name)
    assert still.locator("img").evaluate("async image => { await image.decode(); return image.naturalWidth }") > 300
    assert still.evaluate(LINE) == "Run this cell to move the sliders." and still.locator("input").count() == 0
    assert "widget" not in page.locator(".jp-OutputArea:has(.explore-still)").inner_text()
    return still.evaluate(SENTENCE)


def test_a_slider_says_what_is_true_while_its_kernel_lives(lab, page, record_property):
    folder, address = lab
    cells = [PICTURE, "print('drawn', drawn)"]
    run_all(
        page, new_notebook(cells=[new_code_cell(source.strip()) for source in cells]), folder, address, "true.ipynb"
    )
    (figure,) = sliders(page)
    height, color = figure.locator("input").all()
    assert page.get_by_role("slider", name="height").count() == 1
    assert serious(page, "figure.explore[data-ready]") == []
    top = figure.evaluate(TOP)
    press(page, figure, color, "ArrowRight")
    assert color.get_attribute("aria-valuetext") == "blue" and figure.locator("output").all_inner_texts() == [
        "1",
        "blue",
    ]
    assert figure.locator("img").get_attribute("alt") == figure.evaluate(SENTENCE) == "Height 1, blue."

    height.focus()  # a key held down: the latest position wins
    page.evaluate(HOLD, 40)
    until(figure, SENTENCE, "Height 6, blue.")
    page.wait_for_timeout(500)
    assert figure.evaluate(SENTENCE) == "Height 6, blue." and figure.get_attribute("data-waiting") is None

    height.press("ArrowRight")  # there the picture fails
    assert "ZeroDivisionError" in until(figure, LINE, "so the one before stays: ")
    assert figure.evaluate(SENTENCE) == "Height 6, blue." and figure.get_attribute("data-waiting") is not None
    height.press("ArrowLeft")
    until(figure, LINE, "")

    height.press("ArrowLeft")  # there it takes four seconds
    until(figure, LINE, "The kernel is busy or new", 3)
    keep_pictures(page, "busy")
    assert figure.evaluate(SENTENCE) == "Height 6, blue." and figure.get_attribute("data-waiting") is not None
    until(figure, LINE, "")
    assert figure.evaluate(SENTENCE) == "Height 5, blue." and figure.evaluate(TOP) == top
    page.locator(".jp-CodeCell .cm-content").nth(1).click()
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(FINISHED)
    drawn = int(page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-output").inner_text().split()[1])
    record_property("note", f"a key held for 40 moves: {drawn} pictures drawn in all")
    assert drawn < 40


def test_picture_and_sentence_outlive_the_kernel(lab, page):
    folder, address = lab
    run_all(page, new_notebook(cells=[new_code_cell(PICTURE.strip())]), folder, address, "outlive.ipynb")
    (figure,) = sliders(page)
    height, color = figure.locator("input").all()
    press(page, figure, height, "ArrowRight")
    page.keyboard.press("Control+s")
    end = time.monotonic() + 30
    while "Height 1, red." not in (folder / "outlive.ipynb").read_text("utf-8") and time.monotonic() < end:
        time.sleep(0.1)

    page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    page.locator(".lm-Menu-item[data-command='kernelmenu:restart']").click()
    page.locator(".jp-Dialog .jp-mod-accept").wait_for()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    until(figure, LINE, "Run this cell to move the sliders.")
    assert height.is_disabled() and color.is_disabled() and height.get_attribute("aria-valuetext") == "2"
    assert figure.evaluate(SENTENCE) == "Height 2, red." and figure.locator("img").is_visible()
    keep_pictures(page, "restarted")

    page.goto(address("outlive.ipynb"), timeout=120_000)
    page.get_by_text("| Idle").first.wait_for(timeout=120_000)
    assert stands(page, "reopened") == "Height 1, red."


# ---- the checks above do fail --------------------------------------------------------------------------------------

STUCK = """
from course_utils.classroom.widgets import explore
def picture(figure):
    (line,) = figure.subplots().plot([0, 1], [0, 1])
    def update(height):
        line.set_ydata([0, height])
        return "A line."
    return update
explore(picture, height=[1, 2, 3])
"""


def test_a_slider_without_answer_is_seen(lab, page):
    folder, address = lab
    run_all(page, new_notebook(cells=[new_code_cell(STUCK.strip())]), folder, address, "planted.ipynb")
    (figure,) = sliders(page)
    control, before = figure.locator("input"), figure.evaluate(SENTENCE)
    assert press(page, figure, control, "ArrowRight") > 0  # fine, but the sentence stays
    assert figure.evaluate(SENTENCE) == before == "A line."
    with pytest.raises(AssertionError, match="wanted 'busy', there is ''"):
        until(figure, LINE, "busy", 0.2)
    figure.evaluate("figure => figure.querySelectorAll('input').forEach(input => { input.disabled = true })")
    with pytest.raises(api.Error, match="no new picture after a key press"):
        press(page, figure, control, "ArrowRight", timeout=2000)


def test_an_error_in_a_cell_is_seen(lab, page):
    folder, address = lab
    nb = new_notebook(cells=[new_code_cell("1"), new_code_cell("1 / 0"), new_code_cell("2")])
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_all(page, nb, folder, address, "error.ipynb")


def test_a_request_to_another_host_is_seen_and_gets_nowhere(lab, page):
    failed = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(lab[1](""), timeout=120_000)
    for host in ("example.org", "192.0.2.1"):
        page.evaluate("url => fetch(url, {mode: 'no-cors'}).catch(() => 'refused')", f"http://{host}/")
    outside = ["http://192.0.2.1/", "http://example.org/"]
    assert sorted(url for url in page.asked if not is_here(url)) == sorted(failed) == outside
    assert any("ERR_" in line for line in page.wrong)
