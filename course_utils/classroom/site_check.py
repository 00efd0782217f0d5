"""Whether a finished site holds what it promises: links, no request to elsewhere, sliders, and people who do not see.

`python -m course_utils.classroom.site_check site` looks at every link, and with a browser (Chromium or Chrome, and
Playwright) at every page, from a file server and from the disk.
"""

from __future__ import annotations

import functools
import html
import http.server
import importlib.util
import itertools
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..runtime import require, say

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHANNELS = ("chrome", "msedge", None)  # where macOS and Windows have them, which is not on PATH; None: Playwright's own
PACKAGES = ("playwright", "axe_playwright_python")  # of the extra [test]
FLAGS = [  # no sandbox, as in containers; every host but this machine is unknown
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
ATTRIBUTE = re.compile(r'<(\w+)\b[^>]*?\s(?:href|src)="([^"]*)"')
FIGURE = re.compile(
    r'<figure class="explore" data-frames.*?<script type="application/json">(.*?)</script>.*?<img src="([^"]*)"',
    re.DOTALL,
)
READY = "() => !window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)"
WIDTHS = 390, 1280, 1366  # of windows, in pixels: a phone and two laptops
PATIENCE = 5000  # milliseconds until a slider shows where it stands
SERIOUS = ("serious", "critical")
SPREAD = """() => {  // all slides of a deck one below the other, with their answers: axe sees only what is shown
    document.body.classList.add('measuring')
    document.querySelector('.slides').style.cssText = 'position: static; transform: none'
    for (const slide of document.querySelectorAll('.slides section')) {
        slide.removeAttribute('hidden')
        slide.removeAttribute('aria-hidden')
        slide.style.cssText = 'position: static; transform: none'
    }
    for (const answer of document.querySelectorAll('.fragment')) answer.classList.add('visible')
    for (const part of document.querySelectorAll('html, body, .reveal')) {
        part.style.cssText = 'height: auto; overflow: visible'
    }
}"""
PLAIN = """() => {  // thousands of words in colour and strokes of formulas take axe half a minute on a page
    for (const code of document.querySelectorAll('pre')) code.textContent = code.textContent
    for (const formula of document.querySelectorAll('mjx-container')) formula.remove()
}"""


def pages_of(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts)


def broken_links(site: Path) -> list[str]:
    """Links, pictures, scripts and frames that lead nowhere, and what a page would fetch from elsewhere."""
    texts = {page: (site / page).read_text(encoding="utf-8") for page in pages_of(site)}
    anchors = {
        page: set(map(html.unescape, re.findall(r'\b(?:id|name)="([^"]+)"', text))) for page, text in texts.items()
    }
    wrong = []
    for page, text in texts.items():
        wanted = [(tag, html.unescape(target)) for tag, target in ATTRIBUTE.findall(text)]
        for data, picture in FIGURE.findall(text):
            folder = picture.rsplit("/", 1)[0]
            wanted += [("frame", f"{folder}/{file}") for file, _ in json.loads(data)["frames"]]
        for tag, target in set(wanted):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if tag != "a" and parts.scheme != "data":
                    wrong.append(f"{page}: {tag} comes from elsewhere: {target[:100]}")
                continue
            file = (site / page).parent / unquote(parts.path) if parts.path else site / page
            file = file / "index.html" if file.is_dir() else file
            inside = file.exists() and file.resolve().is_relative_to(site.resolve())
            name = file.resolve().relative_to(site.resolve()).as_posix() if inside else ""
            if not name or (parts.fragment and name in anchors and unquote(parts.fragment) not in anchors[name]):
                wrong.append(f"{page}: {tag} leads nowhere: {target}")
    return sorted(wrong)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a file server for the folder, on this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/favicon.ico":  # a browser asks for it by itself
                self.send_response(204)
                return self.end_headers()
            return super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def check_packages() -> None:
    """ValueError: what drives the browser is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    require(
        not missing, "site --check", f"no {' and no '.join(missing)}", 'installed: python -m pip install -e ".[test]"'
    )


def open_browser(playwright: Any) -> Any:
    """A browser from PATH, or from where the system keeps it; ValueError: there is none."""
    if path := next(filter(None, map(shutil.which, BROWSERS)), None):
        return playwright.chromium.launch(executable_path=path, args=FLAGS)
    for channel in CHANNELS:
        try:
            return playwright.chromium.launch(channel=channel, args=FLAGS)
        except Exception:  # Playwright's own kind of error: it is not there
            continue
    raise ValueError("browser: got none; allowed: Chrome, Chromium or Edge, or: python -m playwright install chromium")


def faults(site: Path, pages: Iterable[str]) -> Iterator[str]:
    """What is wrong with these pages in a browser, one line each.

    Each is opened from a file server and from the disk. No host may be asked but the page's own, the console has no
    error, every slider shows the picture and the sentence of each position it is moved to, and axe-core finds no
    serious violation, light and dark.
    """
    check_packages()
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    axe = Axe()
    with sync_playwright() as playwright, served(site) as address:
        browser = open_browser(playwright)
        for name in pages:
            for root in (address, site.resolve().as_uri()):
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                wrong = _opened(page, root, name) + still_sliders(page)
                if root == address:
                    wrong += cut_off(page)
                    if page.evaluate("!!window.Reveal"):
                        page.evaluate(SPREAD)
                    wrong += _violations(axe, page, "light") + _violations(axe, page, "dark")
                page.close()
                yield from (f"{root.split(':')[0]} {name}: {line}" for line in wrong)
        browser.close()


def _opened(page: Any, root: str, name: str) -> list[str]:
    """A page once its formulas are drawn: what it has asked for elsewhere, and errors in its console."""
    wrong: list[str] = []
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((root, "data:")) else wrong.append(asked.url))
    page.goto(f"{root}/{name}")
    page.wait_for_function(READY)
    return wrong


def cut_off(page: Any) -> list[str]:
    """Widths of a window at which the page is wider."""
    wrong = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            wrong.append(f"is {wide} pixels wide in a window of {width}")
    return wrong


def _violations(axe: Any, page: Any, scheme: str) -> list[str]:
    page.evaluate(PLAIN)
    page.emulate_media(color_scheme=scheme)
    rules = {} if scheme == "light" else {"runOnly": ["color-contrast"]}
    found = axe.run(page, None, {"resultTypes": ["violations"], **rules}).response["violations"]
    return [
        f"{scheme}: {rule['id']}, {rule['help']} ({len(rule['nodes'])} times): {rule['nodes'][0]['html'][:150]}"
        for rule in found
        if rule["impact"] in SERIOUS
    ]


def still_sliders(page: Any) -> list[str]:
    """Sliders that do not show, after a key, the picture and sentence of where they stand."""
    wrong = []
    for number, figure in enumerate(page.locator("figure.explore[data-frames]").all(), 1):
        data = json.loads(figure.locator("script").inner_text())
        figure.evaluate(ITS_SLIDE)
        for k, control in enumerate(figure.locator("input").all()):
            moved = move(figure, control, data, k)
            if moved:
                wrong.append(f"figure {number}, slider {k + 1}: {moved}")
    return wrong


def move(figure: Any, control: Any, data: dict, k: int) -> str:
    """Press arrow keys until the picture is another one; what is wrong, or an empty text.

    The other sliders stand where this one changes the picture, by the frames themselves.
    """
    values, last = data["values"], len(data["values"][k]) - 1
    seen: dict[tuple[int, ...], set[str]] = {}
    for places, (file, _) in zip(itertools.product(*map(range, map(len, values))), data["frames"], strict=True):
        seen.setdefault(places[:k] + places[k + 1 :], set()).add(file)
    for others in sorted(seen, key=lambda places: -len(seen[places]))[:1]:
        for other, place in zip(
            [c for j, c in enumerate(figure.locator("input").all()) if j != k], others, strict=True
        ):
            for key in ["Home", *["ArrowRight"] * place]:
                other.press(key)
        files = set()
        for key in ["Home", *["ArrowRight"] * last]:
            control.press(key)
            file, sentence = _expected(figure, values, data)
            try:
                figure.page.wait_for_function(SHOWS, arg=[figure.element_handle(), file, sentence], timeout=PATIENCE)
            except Exception:  # Playwright's own kind of TimeoutError
                return f"does not show {file} with {sentence!r}"
            files.add(file)
            if len(files) > 1:
                return ""
    return "never changes the picture"


ITS_SLIDE = """figure => {  // a deck takes keys on the slide that it shows
    const {h, v} = window.Reveal?.getIndices(figure.closest('section')) ?? {}
    window.Reveal?.slide(h, v)
}"""
SHOWS = """([figure, file, sentence]) => figure.querySelector('img').src.endsWith('/' + file)
    && figure.querySelector('img').complete && figure.querySelector('img').naturalWidth > 0
    && figure.querySelector('.explore-sentence').textContent.trim() === sentence.trim()"""


def _expected(figure: Any, values: Sequence[Sequence[str]], data: dict) -> list[str]:
    at = 0
    for control, own in zip(figure.locator("input").all(), values, strict=True):
        at = at * len(own) + int(control.input_value())
    return data["frames"][at]


def main(arguments: Sequence[str]) -> int:
    """Check the site in a folder; print what is wrong. Exit code 1: something is."""
    site = Path(arguments[0] if arguments else "site")
    pages = pages_of(site)
    if not pages:
        say(f"site: got {site}; allowed: a folder that `python course.py site` made", sys.stderr)
        return 2
    count = 0
    try:
        for line in itertools.chain(broken_links(site), faults(site, pages)):
            say(line, sys.stderr)
            count += 1
    except ValueError as error:  # nothing to check with
        say(error, sys.stderr)
        return 2
    say(f"{len(pages)} pages, links and all, from a file server and from the disk: {count or 'no'} faults")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
