"""`python course.py slides 03`: a deck with working sliders for a lesson, that needs no kernel and no network.

Each slide is made from the notebook and the frames of its sliders; nothing is written twice. What a deck shows is said
in notebooks/for_lecturers.md, section by section, for 40 and for 90 minutes. What the notebook says about a picture goes
into the speaker's notes (key S).
"""

from __future__ import annotations

import argparse
import base64
import functools
import html
import importlib.util
import io
import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbconvert.filters import markdown2html
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from ..runtime import located, require, say, write_atomically
from .notebooks import ROOT, find_notebooks

PAGES = Path(__file__).parent / "pages"
PLANS = ROOT / "notebooks" / "for_lecturers.md"
MINUTES = 40, 90
ROOM = 1180, 590  # pixels below the heading of a slide of 1280 x 720
LINE, LETTERS = 42, 82  # height of a line of text, and how many letters it holds
LIST = r"[-*] |\d+\. "
DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
HEADING = re.compile(r"^#{1,3} +(.*)$", re.MULTILINE)


# ---- the plans -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What for_lecturers.md says about one notebook; names are headings, `take_home` a heading and which picture."""

    shown: dict[int, tuple[str, ...]]
    question: str
    answer: str
    take_home: tuple[str, int]


def read_plans(path: Path = PLANS) -> dict[str, Plan]:
    """{"01": its plan, ...}, read from the sections of for_lecturers.md whose headings link to a notebook.

    Raises:
        ValueError: a section lacks one of its lines.
    """
    parts = re.split(r"^### \[(\d\d) · .*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {number: _plan(text, f"{path.name}, {number}") for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def _plan(text: str, where: str) -> Plan:
    def line(pattern: str, allowed: str) -> re.Match:
        found = re.search(rf"^- \*\*{pattern}$", " ".join(re.split(r"\n +", text)).replace(" - **", "\n- **"), re.MULTILINE)
        require(found, where, "no such line", allowed)
        assert found
        return found

    short, more = (
        re.findall(r"\*([^*]+)\*", line(rf"{start}:\*\* (.*)", f"- **{start}:** *a heading* · *another*")[1])
        for start in ("40 minutes", "90 minutes, add")
    )
    room = line(r'Ask the room:\*\* "(.+?)" (.+)', '- **Ask the room:** "a question" and what to hear')
    home = line(r"Take home:\*\* picture (\d+) of \*([^*]+)\*.*", "- **Take home:** picture 1 of *a heading*, what it is")
    return Plan({40: tuple(short), 90: (*short, *more)}, room[1], room[2], (home[2], int(home[1])))


# ---- a slide ---------------------------------------------------------------------------------------------------------


@dataclass
class Slide:
    """One slide: heading, HTML, what is said beside it; `below` are the tables of a picture, one press of Down away."""

    heading: str
    body: str
    kind: str = "text"
    notes: list[str] = field(default_factory=list)
    below: list[Slide] = field(default_factory=list)
    mark: str = ""

    def html(self) -> str:
        mark = f'<span class="mark">{self.mark}</span>' if self.mark else ""
        top = f"<h1>{_inline(self.heading)}</h1>" if self.kind == "title" else f"<h2>{_inline(self.heading)}{mark}</h2>"
        notes = f'<aside class="notes">{_html(chr(10).join(self.notes))}</aside>' if self.notes else ""
        own = f'<section class="{self.kind}">{top}\n{self.body}{notes}</section>'
        return own if not self.below else f"<section>{own}{''.join(slide.html() for slide in self.below)}</section>"


def _html(markdown: str) -> str:
    """HTML of Markdown; links to files of the course become plain text, because a deck lies elsewhere."""
    return markdown2html(re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", markdown))


def _inline(markdown: str) -> str:
    return re.sub(r"^\s*<p>|</p>\s*$", "", _html(markdown))


def _code(source: str, printed: str = "") -> str:
    shown = highlight(source, PythonLexer(), HtmlFormatter())
    return shown + (f'<pre class="printed">{html.escape(printed)}</pre>' if printed else "")


# ---- text that fits --------------------------------------------------------------------------------------------------


def _height(block: str) -> int:
    """About how many pixels a block of Markdown is high."""
    if block.startswith("$$"):
        return 150
    lines = block.splitlines()
    if block.startswith("|"):
        return LINE * len(lines)
    text = (re.sub(r"\\[a-zA-Z]+|[{}$^_*`]", "", line) for line in lines)
    return 18 + LINE * sum(max(1, math.ceil(len(line) / LETTERS)) for line in text)


def _pieces(block: str) -> list[str]:
    """A block that is too high for a slide, in parts that are not: items of a list, rows of a table, sentences."""
    if _height(block) <= ROOM[1]:
        return [block]
    if block.startswith("|"):
        head, rows = block.splitlines()[:2], block.splitlines()[2:]
        step = ROOM[1] // LINE - 2
        return ["\n".join([*head, *rows[k : k + step]]) for k in range(0, len(rows), step)]
    is_list = re.match(LIST, block)
    parts = re.split(rf"\n(?={LIST})" if is_list else r"(?<=[.?!]) (?=[A-Z*])", block)
    return packed(parts, "\n" if is_list else " ")


def packed(blocks: Iterable[str], between: str = "\n\n") -> list[str]:
    """The blocks, put together as long as they fit on one slide."""
    found: list[str] = []
    for block in blocks:
        joined = found[-1] + between + block if found else block
        heights = sum(map(_height, joined.split("\n\n")))
        if found and heights <= ROOM[1]:
            found[-1] = joined
        else:
            found.append(block)
    return found


# ---- from a notebook to slides ---------------------------------------------------------------------------------------


class Deck:
    """Reads the cells of a notebook one after the other and keeps the slides of the sections that are wanted.

    wanted: headings; an exercise is shown only if it is named itself. frames: for each slider of the notebook its
    index, or none: then the stored first position is shown. files: what has to lie beside the deck, name -> bytes.
    """

    def __init__(self, wanted: Sequence[str], take_home: tuple[str, int], number: str, frames: Sequence[dict] = ()):
        self.wanted, self.take_home, self.number, self.frames = wanted, take_home, number, frames
        self.slides: list[Slide] = []
        self.files: dict[str, bytes] = {}
        self.headings: list[str] = []
        self.section, self.sub = "", ""
        self.waiting: list[str] = []  # blocks of text that go on the next slides
        self.said: list[str] = []  # prose for the notes of the next slide
        self.seen: Slide | None = None  # the picture that the next text is about
        self.sliders, self.pictures = 0, 0

    @property
    def shown(self) -> bool:
        return self.sub in self.wanted or (self.section in self.wanted and not self.sub.startswith("Exercise"))

    def add(self, body: str, kind: str = "text", heading: str = "") -> Slide:
        slide = Slide(heading or self.section, body, kind, self.said)
        self.slides.append(slide)
        self.said = []
        return slide

    def read(self, notebook: nbformat.NotebookNode) -> None:
        for place, cell in enumerate(notebook.cells):
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "markdown":
                self.text(cell.source, first=place == 0)
            elif "widget" in tags:
                self.flush()
                self.widget(cell)
            elif any(tag.startswith("exercise-") for tag in tags):
                self.exercise(cell.source)
            elif any(tag.startswith("check-") for tag in tags):
                self.sub, self.seen = "", None
            elif self.shown and not {"setup", "predict"} & set(tags):
                self.flush()
                folded = "machinery" in tags or cell.metadata.get("jupyter", {}).get("source_hidden")
                self.code(cell, folded=bool(folded))
        self.flush()

    # -- text

    def text(self, source: str, *, first: bool) -> None:
        found = HEADING.split(DETAILS.sub(self._folded if "Exercise" not in source else "", source).replace("<br>", ""))
        self.blocks(found[0])
        for name, body in zip(found[1::2], found[2::2], strict=True):
            self.flush()
            level = re.search(rf"^(#+) +{re.escape(name)}$", source, re.MULTILINE)
            assert level
            self.headings.append(name)
            self.seen, self.said = None, []
            if len(level[1]) <= 2:
                self.section, self.sub = name, ""
                self.pictures = 0
            else:
                self.sub = name
            if first and len(level[1]) == 1:
                self.title, self.about = name, body.strip()
            elif first and name == "You will be able to":
                goals, _, needs = body.partition("**You need**")
                self.said = [self.about, "**You need**" + needs.partition("|")[0]]
                self.add(_html(goals), "title", self.title)
            elif name == "Check yourself":
                self.questions(source)
            elif name == "In one breath":
                self.add(_html(body), "breath", name)
            elif name.startswith("Exercise"):
                self._solution = DETAILS.findall(source)
                self.waiting = [body.strip()] if self.shown else []
            else:
                self.blocks(body)

    def _folded(self, found: re.Match) -> str:
        self.said.append(f"{found[1]}: {found[2].strip()}")
        return ""

    def blocks(self, body: str) -> None:
        """Put what belongs on a slide on one, and the rest into the notes of the picture before or the slide after."""
        if not self.shown:
            return
        blocks = [block.strip() for block in body.split("\n\n") if block.strip()]
        large = self.sub.startswith("Predict") or self.section.startswith(("Predict", "Play")) and not self.seen
        for k, block in enumerate(blocks):
            near = block.startswith("$$") or (k + 1 < len(blocks) and blocks[k + 1].startswith("$$"))
            after = k and blocks[k - 1].startswith("$$") and block[0].islower()
            marked = "**" in block or re.match(rf"{LIST}|\|", block)
            if block.startswith("**Predict"):
                self.flush()
                self.add(_html(block), "ask")
            elif block.startswith("**What") or (self.seen and not near and not after):
                (self.seen.notes if self.seen else self.said).append(block + "\n")
            elif large or near or after or marked:
                self.waiting.append(block)
            else:
                self.said.append(block + "\n")

    def flush(self) -> None:
        """The text that waits becomes slides."""
        heading = self.sub or self.section
        kind = "ask" if heading.startswith(("Predict", "Play")) else "text"
        for body in packed(piece for block in self.waiting for piece in _pieces(block)):
            self.add(_html(body), kind, heading)
        self.waiting = []

    def questions(self, source: str) -> None:
        if not self.shown:
            return
        for part in re.split(r"(?m)^(?=\*\*\d+\.)", source)[1:]:
            answers = dict(re.findall(r"^- (\w\)) (.*)$", DETAILS.search(part)[2], re.MULTILINE))  # type: ignore[index]
            question = DETAILS.sub("", part).replace("<br>", "").strip()
            options = re.findall(r"^- (\w\)) (.*)$", question, re.MULTILINE)
            items = "".join(
                f"<li>{_inline(f'{letter} {text}')}<div class='fragment answer{' right' * answer.startswith('Right')}' "
                f"data-fragment-index='0'>{_inline(answer)}</div></li>"
                for letter, text in options
                for answer in [answers.get(letter, "")]
            )
            text = question.partition("\n- a)")[0].strip().strip("*")
            self.add(f"<p class='question'>{_inline(text)}</p><ul class='options'>{items}</ul>", "question")

    def exercise(self, stub: str) -> None:
        if self.shown:
            self.add("".join(map(_html, self.waiting)) + _code(stub), "code", self.sub)
            hints = [f"{name}: {text.strip()}\n" for name, text in self._solution if name != "Solution"]
            self.slides[-1].notes = hints
            solution = next(text for name, text in self._solution if name == "Solution")
            fenced = re.search(r"```python\n(.*?)```", solution, re.DOTALL)
            if fenced:
                self.add(_code(fenced[1]), "code", self.sub)
                self.slides[-1].mark = "One solution"
        self.waiting = []

    # -- outputs

    def code(self, cell: nbformat.NotebookNode, *, folded: bool) -> None:
        pictures = tables = 0
        printed, late = [], []
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "stream":
                lines = [line for line in output.text.splitlines() if line.strip() and "Exercise " not in line]
                printed += [line for line in lines if "guess" not in line and "you:" not in line]
            elif found := _picture(output):
                pictures += 1
                self.picture(*found)
            elif "<table" in data.get("text/html", ""):
                tables += 1
                late.append(_table(data["text/html"]))
        host = self.seen if pictures else None
        for table in late:
            slide = self.add(table, "table")
            if host:  # a picture comes first; its tables lie below it
                host.below.append(self.slides.pop())
            else:
                self.seen = slide
        if printed and not folded and not pictures and not tables:
            self.seen = self.add(_code(cell.source, "\n".join(printed)), "code")
        elif printed and self.seen:
            self.seen.notes.append("Printed: " + " · ".join(printed) + "\n")

    def picture(self, data: bytes, suffix: str, alt: str) -> None:
        self.pictures += 1
        name = f"{self.number}/{len(self.files)}.{suffix}"
        self.files[name] = data
        width, height = Image.open(io.BytesIO(data)).size
        left = ROOM[1] - min(ROOM[1], ROOM[0] * height / width)
        fits = left >= 0.75 * _height(alt)
        caption = f"<figcaption>{html.escape(alt)}</figcaption>" if fits else ""
        body = f'<figure class="picture"><img src="{name}" alt="{html.escape(alt)}">{caption}</figure>'
        self.seen = self.add(body, "figure")
        if (self.section, self.pictures) == self.take_home:
            self.seen.mark = "Take home"

    def widget(self, cell: nbformat.NotebookNode) -> None:
        for output in cell.outputs:
            if not (found := _picture(output)):
                continue
            if self.shown and self.sliders < len(self.frames):
                from .frames import figure_html

                index = self.frames[self.sliders]
                self.seen = self.add(figure_html(index, f"{self.number}/slider_{self.sliders}"), "slider")
            elif self.shown:
                self.picture(*found)
            self.sliders += 1


def _picture(output: nbformat.NotebookNode) -> tuple[bytes, str, str] | None:
    """(bytes, "png" or "webp", alt text) of an output that is a picture."""
    data = output.get("data", {})
    page = re.search(r'<img alt="([^"]*)"[^>]*src="data:image/(\w+);base64,([^"]+)"', data.get("text/html", ""))
    if page:
        return base64.b64decode(page[3]), page[2], html.unescape(page[1])
    if "image/png" in data:
        return base64.b64decode(data["image/png"]), "png", output.metadata.get("image/png", {}).get("alt", "")
    return None


def _table(page: str) -> str:
    rows = page.count("<tr") + 2 * page.count("<p>")
    size = min(1.0, ROOM[1] / LINE / max(rows, 1))
    return f'<div class="table" style="font-size: {max(size, 0.5):.2f}em">{page}</div>'


def headings(notebook: nbformat.NotebookNode) -> list[str]:
    """The names of all sections and exercises of a notebook, in order."""
    return [name for cell in notebook.cells if cell.cell_type == "markdown" for name in HEADING.findall(cell.source)]


def slides_of(notebook: nbformat.NotebookNode, plan: Plan, minutes: int, number: str, frames: Sequence[dict] = ()) -> Deck:
    """The deck of a notebook: title, what the plan shows, a question for the room, "In one breath".

    Raises:
        ValueError: the plan names what is no heading of the notebook.
    """
    require(minutes in plan.shown, "minutes", minutes, " or ".join(map(str, plan.shown)))
    names = headings(notebook)
    for name in plan.shown[minutes]:
        require(name in names, f"{PLANS.name}, {number}", repr(name), f"a heading of the notebook: {', '.join(names)}")
    deck = Deck(plan.shown[minutes], plan.take_home, number, frames)
    deck.read(notebook)
    room = Slide("Ask the room", f"<p>{_inline(plan.question)}</p>", "ask", [plan.answer])
    kinds = [slide.kind for slide in deck.slides]
    deck.slides.insert(kinds.index("breath") if "breath" in kinds else len(kinds), room)
    return deck


# ---- a folder that works without a network ---------------------------------------------------------------------------


def _package(name: str) -> Path:
    """The folder of an installed package whose files are only copied."""
    found = importlib.util.find_spec(name)
    advice = "an installed package: python -m pip install -e .[site]"
    require(found and found.submodule_search_locations, name, "none", advice)
    assert found and found.submodule_search_locations
    return Path(next(iter(found.submodule_search_locations)))


def machinery() -> dict[str, Path]:
    """What every deck needs beside it: name there -> file here."""
    reveal = _package("sphinx_revealjs") / "_static" / "revealjs"
    parts = "LICENSE", "dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js"
    files = {f"reveal/{part}": reveal / part for part in parts}
    files["mathjax/tex-svg-full.js"] = _package("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg-full.js"
    return files | {name: PAGES / name for name in ("course.css", "explore.css", "explore.js", "deck.css", "deck.js")}


def write(deck: Deck, out: Path, name: str) -> Path:
    """The deck and all that it needs, in the folder `out`; decks share what they have in common."""
    for place, file in machinery().items():
        write_atomically(out / place, lambda target, file=file: target.write(file.read_bytes()))
    for place, data in deck.files.items():
        write_atomically(out / place, lambda target, data=data: target.write(data))
    for k, index in enumerate(deck.frames):
        for frame in {frame for frame, _ in index["frames"]}:
            source, place = Path(index["folder"]) / frame, out / f"{deck.number}/slider_{k}" / frame
            write_atomically(place, lambda target, source=source: target.write(source.read_bytes()))
    page = (PAGES / "deck.html").read_text(encoding="utf-8")
    page = page.replace("TITLE", html.escape(deck.title)).replace("CODE", HtmlFormatter().get_style_defs())
    page = page.replace("SLIDES", "\n".join(slide.html() for slide in deck.slides))
    write_atomically(out / name, lambda target: target.write(page.encode("utf-8")))
    return out / name


def build(number: str, out: Path, minutes: int = 90) -> Path:
    """Write the deck of one notebook into the folder `out`; return the page to open, such as out/03_40.html.

    Raises:
        ValueError: no such notebook, no plan for it, or what the deck is made of is not installed.
    """
    path = find_notebooks([number])[0]
    number, plans = path.stem[:2], read_plans()
    require(number in plans, "notebook", number, f"one with a plan in {PLANS.name}: {', '.join(plans)}")
    notebook, frames = with_frames(path)
    return write(slides_of(notebook, plans[number], minutes, number, frames), located(out), f"{number}_{minutes}.html")


def main(arguments: Sequence[str]) -> int:
    """Exit code 2: no such notebook or plan, or a place that cannot be written to."""
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python course.py slides", description=about.partition(": ")[2], epilog=more)
    parser.add_argument("notebook", nargs="+", help="its number, such as 03")
    parser.add_argument("--minutes", type=int, choices=MINUTES, default=90, help="length of the lesson (default 90)")
    parser.add_argument("--out", metavar="FOLDER", default="slides", help="by default slides")
    options = parser.parse_args(arguments)
    try:
        for name in options.notebook:
            say(build(name, Path(options.out), options.minutes))
    except (ValueError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
