"""`python course.py slides 03`: a deck with working sliders for a lesson, that needs no kernel and no network.

Each slide is made from the notebook and the frames of its sliders; nothing is written twice. What a deck shows stands
in notebooks/for_lecturers.md, section by section, for 40 and for 90 minutes. What the notebook says about a picture is
in the speaker's notes (key S).
"""

from __future__ import annotations

import argparse
import base64
import html
import importlib.util
import io
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert.filters import markdown2html
from PIL import Image
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers.python import PythonLexer

from ..runtime import digest, located, require, say, write_atomically
from . import notebooks
from .frames import figure_html

PAGES = Path(__file__).parent / "pages"
PLANS = notebooks.ROOT / "notebooks" / "for_lecturers.md"
MINUTES = 40, 90
ROOM = 1180, 590  # pixels below the heading of a slide of 1280 x 720
LINE, LETTERS = 42, 82  # height of a line of text, and its letters
ASK = "Predict", "Play"  # sections that begin with a question to the room
LIST = r"[-*] |\d+\. "
DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
CHOICE = re.compile(r"^- (\w\)) (.*)$", re.MULTILINE)
HEADING = re.compile(r"^(#{1,3}) +(.*)$", re.MULTILINE)


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
    return {
        number: _plan(text, f"{path.name}, {number}") for number, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def _plan(text: str, where: str) -> Plan:
    lines = re.sub(r"\n +", " ", text)  # a line of a list that goes on in the next one

    def line(pattern: str, allowed: str) -> tuple[str, ...]:
        found = re.search(rf"^- \*\*{pattern}", lines, re.MULTILINE)
        require(found, where, f"no line for {pattern.partition(':')[0]!r}", allowed)
        return found.groups() if found else ()

    short, more = (
        re.findall(r"\*([^*]+)\*", line(rf"{start}:\*\* (.+)", f"- **{start}:** *a heading*, *another one*")[0])
        for start in ("40 minutes", "90 minutes, add")
    )
    question, answer = line(r'Ask the room:\*\* "(.+?)" (.+)', '- **Ask the room:** "a question" and what to hear')
    picture, section = line(r"Take home:\*\* picture (\d+) of \*([^*]+)\*", "- **Take home:** picture 1 of *a heading*")
    return Plan({40: tuple(short), 90: (*short, *more)}, question, answer, (section, int(picture)))


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
        tail = '<hr class="course-tail">' if self.kind == "title" else ""
        level = "h1" if tail else "h2"
        top = f"<{level}>{_inline(self.heading)}{mark}</{level}>{tail}"
        notes = f'<aside class="notes">{_html(chr(10).join(self.notes))}</aside>' if self.notes else ""
        own = f'<section class="{self.kind}">{top}\n<div class="body">{self.body}</div>{notes}</section>'
        return own if not self.below else f"<section>{own}{''.join(slide.html() for slide in self.below)}</section>"


def _html(markdown: str) -> str:
    """HTML of Markdown; links to files of the course become plain text, because a deck lies elsewhere."""
    return markdown2html(re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", markdown))


def _inline(markdown: str) -> str:
    return re.sub(r"^\s*<p>|</p>\s*$", "", _html(markdown))


def _step(answer: str) -> str:  # shown at the next press of a key
    right = " right" if answer.startswith("Right") else ""
    return f'<div class="fragment answer{right}" data-fragment-index="0">{_inline(answer)}</div>'


def _code(source: str, printed: str = "") -> str:
    shown = highlight(source, PythonLexer(), HtmlFormatter())
    return shown + (f'<pre class="printed">{html.escape(printed)}</pre>' if printed else "")


# ---- text that fits --------------------------------------------------------------------------------------------------


def _height(block: str) -> int:
    """About how many pixels a block of Markdown is high."""
    if block.startswith("$$"):
        return 150
    if block.startswith("|"):
        return LINE * len(block.splitlines())
    text = (re.sub(r"\\[a-zA-Z]+|[{}$^_*`]", "", line) for line in block.splitlines())
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
    index, or none: then the stored first position is shown. files: what has to lie beside the deck, name -> bytes
    or the file that has them.
    """

    def __init__(self, wanted: Sequence[str], take_home: tuple[str, int], number: str, frames: Sequence[dict] = ()):
        self.wanted, self.take_home, self.number, self.frames = wanted, take_home, number, frames
        self.slides: list[Slide] = []
        self.files: dict[str, bytes | Path] = {}
        self.section, self.sub = "", ""
        self.waiting: list[str] = []  # blocks of text for the next slides
        self.said: list[str] = []  # prose for the notes of the next slide
        self.seen: Slide | None = None  # the picture that the next text is about
        self.sliders, self.pictures = 0, 0
        self.title, self.about = "", ""
        self.solution: dict[str, str] = {}  # of the exercise that is being read: also its hints

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
            elif self.shown and "predict" in tags:
                self.flush()
                if self.slides[-1].kind != "ask":  # the question stands in the cell
                    self.add(_code(cell.source), "ask")
            elif self.shown and "setup" not in tags:
                self.flush()
                folded = "machinery" in tags or cell.metadata.get("jupyter", {}).get("source_hidden")
                self.code(cell, folded=bool(folded))
        self.flush()

    # -- text

    def text(self, source: str, *, first: bool) -> None:
        before, *parts = HEADING.split(source.replace("<br>", ""))
        self.blocks(before)
        for level, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            self.flush()
            self.seen, self.said = None, []
            if level == "###":
                self.sub = name
            else:
                self.section, self.sub, self.pictures = name, "", 0
            if level == "#":
                self.title, self.about = name, body.strip()
            elif first and name == "You will be able to":
                goals, _, needs = body.partition("**You need**")
                self.said = [self.about + "\n", "**You need**" + needs.partition("\n|")[0]]
                self.add(_html(f"{name}\n\n{goals}"), "title", self.title)
            elif name == "Check yourself":
                self.questions(body)
            elif name == "In one breath":
                self.add(_html(body), "breath")
            elif name.startswith("Exercise"):
                self.solution = {title: text.strip() for title, text in DETAILS.findall(body)}
                self.waiting = [DETAILS.sub("", body).strip()]
            else:
                self.blocks(body)

    def blocks(self, body: str) -> None:
        """Put what belongs on a slide on one, and the rest into the notes of the picture before or the slide after."""
        if not self.shown:
            return
        self.said += [f"{title}: {text.strip()}\n" for title, text in DETAILS.findall(body)]
        blocks = [block.strip() for block in DETAILS.sub("", body).split("\n\n") if block.strip()]
        large = (self.sub or self.section).startswith(ASK)
        for k, block in enumerate(blocks):
            beside = blocks[k : k + 2]  # what leads to a formula, a list or a table goes with it
            formula = any(other.startswith("$$") for other in beside)
            formula |= k > 0 and blocks[k - 1].startswith("$$") and block[0].islower()
            idea = large or "**" in block or any(re.match(rf"{LIST}|\|", other) for other in beside)
            if block.startswith("**Predict"):
                self.flush()
                self.add(_html(block), "ask")
            elif not block.startswith("**What") and (formula or (idea and not self.seen)):
                self.waiting.append(block)
            else:
                (self.seen.notes if self.seen else self.said).append(block + "\n")

    def flush(self) -> None:
        """The text that waits becomes slides; a formula stays with what leads to it."""
        heading = self.sub or self.section
        led = re.split(r"\n\n(?!\$\$)", "\n\n".join(self.waiting))
        for body in packed(piece for block in led for piece in _pieces(block) if block):
            self.add(_html(body), "ask" if heading.startswith(ASK) else "text", heading)
        self.waiting = []

    def questions(self, source: str) -> None:
        """Each question is a slide; what each answer is worth comes as a second step."""
        for part in re.split(r"^(?=\*\*\d+\.)", source, flags=re.MULTILINE)[1:] if self.shown else ():
            asked, _, answers = part.partition("<details>")
            worth = dict(CHOICE.findall(answers))
            choices = "".join(
                f"<li>{_inline(f'{letter} {text}')}{_step(worth[letter])}</li>"
                for letter, text in CHOICE.findall(asked)
            )
            question = _inline(asked.partition("\n- ")[0].strip().strip("*").replace(". ", "\\. ", 1))
            self.add(f'<p class="asked">{question}</p><ul class="choices">{choices}</ul>', "question")

    def exercise(self, stub: str) -> None:
        """The task with its stub, then one solution."""
        if self.shown:
            task = self.add("".join(map(_html, self.waiting)) + _code(stub), "code", self.sub)
            task.notes = [f"{name}: {text}\n" for name, text in self.solution.items() if name != "Solution"]
            solution = re.sub(r"```\w*\n?", "", self.solution["Solution"])
            self.add(_code(solution), "code", self.sub).mark = "One solution"
        self.waiting = []

    # -- outputs

    def code(self, cell: nbformat.NotebookNode, *, folded: bool) -> None:
        """Pictures first, tables below the last one or the first of them; what a cell printed goes into the notes."""
        found = [picture for output in cell.outputs if (picture := _picture(output))]
        tables = [page for o in cell.outputs if "<table" in (page := o.get("data", {}).get("text/html", ""))]
        told = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")  # no warnings
        printed = [line for line in told.splitlines() if not re.search(r"^\s*$|Exercise \d|guess|you:", line)]
        for picture in found:
            self.picture(*picture)
        if found and self.seen:
            self.seen.below = [Slide(self.section, table, "table") for table in tables]
        elif tables:
            self.seen = self.add(tables[0], "table")
            self.seen.below = [Slide(self.section, table, "table") for table in tables[1:]]
        elif printed and not folded:
            self.seen = self.add(_code(cell.source, "\n".join(printed)), "code")
        if printed and self.seen and (found or tables):
            self.seen.notes.append("Printed: " + " · ".join(printed) + "\n")

    def picture(self, data: bytes, suffix: str, alt: str) -> None:
        name = f"{self.number}/{digest(data)}.{suffix}"
        self.files[name] = data
        width, height = Image.open(io.BytesIO(data)).size
        scale = min(ROOM[0] / width, ROOM[1] / height)  # as large as it can be
        fits = ROOM[1] - scale * height >= 0.8 * _height(alt)
        caption = f"<figcaption>{html.escape(alt)}</figcaption>" if fits else ""
        size = f'width="{scale * width:.0f}" height="{scale * height:.0f}"'
        self.see(f'<figure><img src="{name}" alt="{html.escape(alt)}" {size}>{caption}</figure>', "figure")

    def see(self, body: str, kind: str) -> None:  # the text that follows is about it
        self.pictures += 1
        self.seen = self.add(body, kind)
        self.seen.mark = "Take home" if (self.section, self.pictures) == self.take_home else ""

    def widget(self, cell: nbformat.NotebookNode) -> None:
        tables = []
        for output in cell.outputs:
            if found := _picture(output):
                index = self.frames[self.sliders] if self.sliders < len(self.frames) else None
                if self.shown and index:
                    place = f"{self.number}/slider_{self.sliders}"
                    self.files |= {f"{place}/{file}": Path(index["folder"]) / file for file, _ in index["frames"]}
                    self.see(figure_html(index, place), "slider")
                elif self.shown:
                    self.picture(*found)
                self.sliders += 1
            elif self.shown and "<table" in output.get("data", {}).get("text/html", ""):
                tables.append(output.data["text/html"])
        if tables and self.seen:
            self.seen.below += [Slide(self.section, table, "table") for table in tables]


def _picture(output: nbformat.NotebookNode) -> tuple[bytes, str, str] | None:
    """(bytes, "webp" or "png", alt text) of an output that is a picture."""
    data = output.get("data", {})
    tag = re.search(r'<img [^>]*src="data:image/(\w+);base64,([^"]+)"[^>]*>', data.get("text/html", ""))
    if tag:
        alt = re.search(r'alt="([^"]*)"', tag[0])
        return base64.b64decode(tag[2]), tag[1], html.unescape(alt[1] if alt else "")
    if "image/png" in data:
        return base64.b64decode(data["image/png"]), "png", output.metadata.get("image/png", {}).get("alt", "")
    return None


def headings(notebook: nbformat.NotebookNode) -> list[str]:
    """The names of all sections and exercises of a notebook, in order."""
    return [name for c in notebook.cells if c.cell_type == "markdown" for _, name in HEADING.findall(c.source)]


def slides_of(
    notebook: nbformat.NotebookNode, plan: Plan, minutes: int, number: str, frames: Sequence[dict] = ()
) -> Deck:
    """The deck: title, what the plan shows, a question for the room, "In one breath". ValueError: no such heading."""
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
    places = getattr(importlib.util.find_spec(name), "submodule_search_locations", None) or [""]
    require(places[0], name, "none", 'an installed package: python -m pip install -e ".[site]"')
    return Path(places[0])


def machinery() -> dict[str, bytes | Path]:
    """What every deck needs beside it: name there -> file here. ValueError: the extra [site] is not installed."""
    reveal = _package("sphinx_revealjs") / "_static" / "revealjs"
    parts = "LICENSE", "dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js"
    files: dict[str, bytes | Path] = {f"reveal/{part}": reveal / part for part in parts}
    files["mathjax/tex-svg-full.js"] = _package("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg-full.js"
    return files | {name: PAGES / name for name in ("course.css", "explore.css", "explore.js", "deck.css", "deck.js")}


def write(deck: Deck, out: Path, name: str) -> Path:
    """The deck and all that it needs, in the folder `out`; decks share what they have in common."""
    for place, data in {**machinery(), **deck.files}.items():
        content = data if isinstance(data, bytes) else data.read_bytes()
        write_atomically(out / place, lambda target, content=content: target.write(content))
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
    path = notebooks.lessons([number])[0]
    number, plans = path.stem[:2], read_plans()
    require(number in plans, "notebook", number, f"one with a plan in {PLANS.name}: {', '.join(plans)}")
    notebook, frames = notebooks.with_frames(path)
    return write(slides_of(notebook, plans[number], minutes, number, frames), located(out), f"{number}_{minutes}.html")


def main(arguments: Sequence[str]) -> int:
    """Exit code 2: no such notebook or plan, or a place that cannot be written to."""
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python course.py slides", description=about.partition(": ")[2], epilog=more)
    parser.add_argument("notebook", nargs="+", help="its number, such as 03")
    parser.add_argument("--minutes", type=int, choices=MINUTES, default=90, help="of the lesson (default 90)")
    parser.add_argument("--out", metavar="FOLDER", default=notebooks.ROOT / "slides", help="by default slides/")
    options = parser.parse_args(arguments)
    try:
        for name in options.notebook:
            say(build(name, Path(options.out), options.minutes))
    except (ValueError, OSError, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
