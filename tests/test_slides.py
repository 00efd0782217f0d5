"""Slides: the plans name sections that are there, and nothing is cut off in a browser at 1280 x 720."""

import base64
import html
import io
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from course_utils.classroom import frames, notebooks, site_check, slides
from course_utils.methods import METHODS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
]
PLANS = slides.read_plans()
STORED = {path.stem[:2]: nbformat.read(path, as_version=4) for path in notebooks.find_notebooks()}
CUT = """() => [
    // MathML for screen readers is not to be seen, and has no place of its own
    ...Reveal.getCurrentSlide().querySelectorAll(':is(h1, h2, .body *):not(mjx-assistive-mml, mjx-assistive-mml *)')
].filter(part => {
    const {left, top, right, bottom, width} = part.getBoundingClientRect()
    return width && (left < 0 || top < 0 || right > 1280.5 || bottom > 720.5)
}).map(part => part.outerHTML.slice(0, 100))"""


def deck(number, minutes):
    return slides.slides_of(STORED[number], PLANS[number], minutes, number)


@pytest.mark.parametrize("number", PLANS)
def test_plans_name_headings_and_pictures_that_are_there(number):
    plan, names = PLANS[number], slides.headings(STORED[number])
    assert set(plan.shown[90]) <= set(names) and set(plan.shown[40]) < set(plan.shown[90])
    assert len(set(plan.shown[90])) == len(plan.shown[90])
    for minutes in slides.MINUTES:
        found = deck(number, minutes)
        kinds = [slide.kind for slide in found.slides]
        assert (kinds[0], kinds[-2], kinds[-1]) == ("title", "ask", "breath")
        assert [slide.mark for slide in found.slides].count("Take home") == 1
        shown = {slide.heading for slide in found.slides}
        assert shown <= {*names, "Ask the room"} and len(shown) > 4


def test_a_formula_stays_with_the_sentence_that_leads_to_it():
    lines = "\n\n".join(f"This **sentence** number {k} leads to:\n\n$$x_{k} = {k}$$" for k in range(9))
    found = slides.Deck(["Words"], ("Words", 1), "01")
    found.text(f"## Words\n\n{lines}", first=False)
    found.flush()
    assert len(found.slides) > 1 and all("sentence" in slide.body.partition("$$")[0] for slide in found.slides)


def test_warnings_of_this_machine_are_not_in_the_notes():
    outputs = [new_output("stream", name=n, text=f"{n} said this\n") for n in ("stdout", "stderr")]
    found = slides.Deck(["Words"], ("Words", 1), "01")
    found.section = "Words"
    found.code(new_code_cell("1", outputs=outputs), folded=False)
    assert "stdout said" in found.slides[0].body and "stderr said" not in found.slides[0].html()


@pytest.mark.parametrize("number", PLANS)
def test_forty_minutes_have_a_slider(number):
    sliders = [cell for cell in STORED[number].cells if "widget" in cell.metadata.get("tags", [])]
    drawn = [html.escape(slides._picture(o)[2]) for cell in sliders for o in cell.outputs if slides._picture(o)]
    page = "".join(slide.html() for slide in deck(number, 40).slides)
    assert any(alt in page for alt in drawn), "the first position of none of its sliders is on a slide"


def test_every_lesson_has_a_plan():
    assert [*PLANS] == [number for number in STORED if number != "00"]


def test_a_plan_that_names_no_heading_is_refused():
    plan = slides.Plan({40: ("Not there",)}, "?", "!", ("Not there", 1))
    with pytest.raises(ValueError, match="'Not there'; allowed: a heading of the notebook"):
        slides.slides_of(STORED["01"], plan, 40, "01")
    with pytest.raises(ValueError, match="minutes: got 30; allowed: 40"):
        slides.slides_of(STORED["01"], plan, 30, "01")


@pytest.mark.parametrize("gone", ["40 minutes", "90 minutes, add", "Ask the room", "Take home"])
def test_a_plan_without_a_line_is_refused(tmp_path, gone):
    text = slides.PLANS.read_text(encoding="utf-8").replace(f"**{gone}:**", "**Later:**", 1)
    (tmp_path / "plans.md").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"plans.md, 01: got no line for '{gone}'"):
        slides.read_plans(tmp_path / "plans.md")


def test_the_table_of_methods_says_what_the_package_says():
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| (\d\d) \| ([^|]+) \| ([^|]+) \|$", slides.PLANS.read_text("utf-8"), re.M
    )
    found = {name.removesuffix(" (the baseline)"): (number, know, costs) for _, name, number, know, costs in rows}
    words = {"training": "a training"}
    for name, method in METHODS.items():
        know = [need for need in method.needs if need in ("counts", "validation")]
        costs = [words.get(need, need) for need in method.needs if need in ("training", "features", "memory")]
        assert found[name] == (method.notebook, ", ".join(know) or "nothing", ", ".join(costs) or "nothing"), name
    assert found.keys() == METHODS.keys()


def test_long_text_is_split_and_nothing_is_lost():
    words = [f"Sentence {k} says one thing about long tails and no other." for k in range(80)]
    table = "\n".join(["| a | b |", "|---|---|", *(f"| {k} | {k} |" for k in range(40))])
    for block, between in ((" ".join(words), " "), ("\n".join(f"- {w}" for w in words), "\n")):
        pieces = slides._pieces(block)
        assert len(pieces) > 1 and between.join(pieces) == block
        assert all(slides._height(piece) <= slides.ROOM[1] for piece in pieces)
    pieces = slides._pieces(table)
    assert len(pieces) > 1 and [row for piece in pieces for row in piece.splitlines()[2:]] == table.splitlines()[2:]


def png(color, size=(800, 300)):
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


def made_up(folder):
    """A notebook with much text, a tall picture, a wide table and a slider of 2 x 3 positions: (notebook, frames)."""
    tall = {"image/png": base64.b64encode(png("navy", (300, 2000))).decode()}
    first = {"image/png": base64.b64encode(png("teal")).decode()}
    row = "".join(f"<td>{'wide' * 3} {k}</td>" for k in range(9))
    cells = [
        new_markdown_cell("# 01 · Made up\n\nWhy.\n\n## You will be able to\n\n- **see** it;\n\n**You need** nothing."),
        new_markdown_cell("## Words\n\n" + " ".join(f"The **word** number {k} of a long text." for k in range(150))),
        new_code_cell(
            outputs=[
                new_output("display_data", tall, metadata={"image/png": {"alt": "A tall picture."}}),
                new_output("display_data", {"text/html": f"<table>{f'<tr>{row}</tr>' * 19}</table>"}),
            ]
        ),
        new_markdown_cell("**What you see.** It is said beside the slide.\n\n## Play\n\nMove it."),
        new_code_cell(metadata={"tags": ["widget"]}, outputs=[new_output("display_data", first)]),
        new_markdown_cell("## In one breath\n\n- All of it."),
    ]
    index = {
        "size": [800, 300],
        "names": ["ratio", "method"],
        "values": [["1", "10"], ["a", "b", "c"]],
        "start": [0, 1],
    }
    drawn = [(png((40 * k, 0, 0)), f"Position {k}.") for k in range(6)]
    frames.write(folder / "0", index, drawn)
    return new_notebook(cells=cells), frames.read(folder)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on this machine")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


def step_through(browser, path):
    """From the first to the last: (slides seen, sliders moved). Nothing is cut off, nothing fetched from outside."""
    page, outside, errors, steps, moved = browser.new_page(viewport={"width": 1280, "height": 720}), [], [], 0, 0
    page.on("request", lambda request: outside.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("body.ready", timeout=60_000)
    while True:
        assert page.evaluate(CUT) == [], f"{path.name}, slide {steps}"
        for figure in page.locator("section.present figure.explore[data-frames]:visible").all():
            data, before = json.loads(figure.locator("script").inner_text()), page.evaluate("Reveal.getIndices()")
            for k, slider in enumerate(figure.locator("input").all()):
                assert site_check.move(figure, slider, data, k) == "", f"{path.name}, slide {steps}, slider {k + 1}"
                assert page.evaluate("Reveal.getIndices()") == before and page.evaluate(CUT) == []
                moved += 1
        steps += 1
        if page.evaluate("Reveal.isLastSlide() && !Reveal.availableFragments().next"):
            break
        page.keyboard.press("PageDown")
    page.close()
    assert errors == [] and [url for url in outside if not url.startswith(("file:", "data:", "blob:"))] == []
    return steps, moved


def test_a_deck_with_a_slider_is_whole(tmp_path, browser):
    notebook, found = made_up(tmp_path / "frames")
    plan = slides.Plan({40: ("Words", "Play")}, "What is it?", "This.", ("Words", 1))
    made = slides.slides_of(notebook, plan, 40, "01", found)
    kinds = [slide.kind for slide in made.slides]
    assert kinds.count("slider") == 1 and kinds.count("text") > 1 and kinds.count("figure") == 1
    figure = made.slides[kinds.index("figure")]
    assert figure.mark == "Take home" and "**What you see.**" in figure.notes[-1] and len(figure.below) == 1
    steps, moved = step_through(browser, slides.write(made, tmp_path / "out", "01_40.html"))
    assert steps == len(made.slides) + 1 and moved == 2


@pytest.mark.parametrize("minutes", slides.MINUTES)
def test_the_stored_notebook_01_fits(tmp_path, browser, minutes):
    steps, _ = step_through(browser, slides.write(deck("01", minutes), tmp_path, f"01_{minutes}.html"))
    assert steps >= len(deck("01", minutes).slides)


@pytest.mark.skipif(not os.environ.get("COURSE_SITE"), reason="COURSE_SITE names no folder with the whole site")
def test_all_decks_of_the_site_fit(browser):
    found = sorted((Path(os.environ.get("COURSE_SITE", "")) / "slides").glob("*_*.html"))
    assert len(found) == len(PLANS) * len(slides.MINUTES)
    for path in found:
        step_through(browser, path)
