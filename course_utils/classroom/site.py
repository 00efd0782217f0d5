"""The web site of the course: every notebook with its sliders alive, without a kernel and without a network.

`python -m course_utils.classroom.site --out site` executes the notebooks of which the pictures of all slider positions
are missing, and builds the pages with Sphinx. What a page needs lies beside it, so the folder works on any file server,
and opened from a disk.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_markdown_cell, new_output

from ..runtime import located, require, say
from . import site_api, site_check, slides
from .frames import PAGES, figure_html
from .notebooks import ROOT, find_notebooks, lessons, with_frames
from .site_pictures import as_html
from .widgets import HINT

DECKS = (
    "One deck for each lesson, with sliders that move. Space or an arrow key goes on; while a slider has the focus,\n"
    "arrow keys move it. The key S opens the notes of the speaker. `python course.py slides 03` writes a deck alone."
)
TITLE = "Learning from long-tailed data"
MENU = {  # below the notebooks: caption -> title in the menu and page, as the repository has it
    "Look up": {"Symbols and glossary": "glossary", "For lecturers": "notebooks/for_lecturers", "Slides": "slides"},
    "Data": {"Letters and clip art": "data/README", "Definitions": "data/WEBSTER", "Typefaces": "data/FONTS"},
    "Package": {"The methods": "package/index", "Contributing": "CONTRIBUTING", "Changes": "CHANGELOG"},
}
MARK = ".longtail-site"  # in each site that was made here: only such a folder is made anew
NO_JEKYLL = ".nojekyll"  # some hosts leave out files that begin with _ unless it is there
AS_FILES = ("LICENSE", "LICENSE-TEXT", "CITATION.cff")  # what texts link to, and is no page
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
LOOK = {  # furo's variables in the words of course.css
    "font-stack": "var(--course-font)",
    "font-stack--monospace": "var(--course-mono)",
    **{f"color-brand-{what}": "var(--course-accent)" for what in ("primary", "content", "visited")},
    "color-background-primary": "var(--course-back)",
    "color-foreground-primary": "var(--course-text)",
    "color-foreground-muted": "var(--course-quiet)",
}
SETTINGS = {
    "project": TITLE,
    "author": "The long-tail course authors",
    "copyright": "The long-tail course authors. Code: MIT; text and figures: CC BY 4.0",
    "html_title": TITLE,
    "extensions": ["myst_nb"],
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_ipywidgets_js": {},  # by default they are fetched from elsewhere
    "nb_code_prompt_show": "Show the code",
    "nb_code_prompt_hide": "Hide the code",
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
    "nitpicky": True,
    "html_theme": "furo",
    "html_theme_options": {"top_of_page_buttons": [], "light_css_variables": LOOK, "dark_css_variables": LOOK},
    "html_favicon": "_static/favicon.svg",
    "html_static_path": ["_static"],
    "html_css_files": ["course.css", "explore.css", "site.css"],
    "html_js_files": [("explore.js", {"defer": "defer"}), ("site.js", {"defer": "defer"})],
    "mathjax_path": "../slides/mathjax/tex-svg-full.js",  # the one that decks take with them
    "html_show_sourcelink": False,
    "html_copy_source": False,
    "html_use_index": False,
}
Taken = tuple[str, nbformat.NotebookNode, Sequence[dict]]  # name, notebook, one index of frames for each slider


def take(still: bool = False) -> list[Taken]:
    """The notebooks and the frames of their sliders; `still`: as they are stored, and nothing is executed."""
    found = []
    for path in lessons():
        notebook, pictures = (nbformat.read(path, as_version=4), []) if still else with_frames(path)
        found.append((path.stem, notebook, pictures))
    return found


def check_place(out: Path) -> None:
    """ValueError: `out` holds something else than an earlier site, which is deleted before a new one is written."""
    here = not out.exists() or (out.is_dir() and (not any(out.iterdir()) or (out / MARK).exists()))
    own = here and not out.is_symlink() and not (out / ".git").exists()
    require(own, "out", out, "a new or empty folder, or one that holds an earlier site and no .git")


def build(out: Path, notebooks: Sequence[Taken]) -> dict[str, int]:
    """Write the site into the folder `out`; return how many pages, sliders and positions it has.

    Raises:
        ValueError: `out` holds something else than an earlier site, or Sphinx has a complaint.
    """
    check_place(out)
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    for name in (MARK, NO_JEKYLL):
        (out / name).touch()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        _write_sources(source, notebooks, out)
        _run_sphinx(source, Path(folder) / "html", Path(folder) / "trees")
        shutil.copytree(Path(folder) / "html", out, dirs_exist_ok=True)  # Sphinx leaves more beside its folder
    positions = [len(index["frames"]) for _, _, pictures in notebooks for index in pictures]
    return {"pages": len(list(out.rglob("*.html"))), "sliders": len(positions), "positions": sum(positions)}


def _write_sources(source: Path, notebooks: Sequence[Taken], out: Path) -> None:
    static = source / "_static"
    static.mkdir(parents=True)
    for name in ("course.css", "explore.css", "explore.js", "site.css", "site.js", "favicon.svg"):
        shutil.copy(PAGES / name, static)
    for name in AS_FILES:
        shutil.copy(ROOT / name, source)
    pages = {page for entries in MENU.values() for page in entries.values()}
    pages |= {f"notebooks/{name}" for name, _, _ in notebooks}
    for name, notebook, pictures in notebooks:
        shown = _notebook(name, notebook, pictures, out)
        for cell in shown.cells:
            if cell.cell_type == "markdown":
                cell.source = _links(cell.source, PurePosixPath("notebooks"), pages, source)
        shown.cells[0].source = _one_title(shown.cells[0].source)
        (source / "notebooks").mkdir(exist_ok=True)
        nbformat.write(shown, source / f"notebooks/{name}.ipynb")
    texts = {f"package/{name}.md": text for name, text in site_api.lesson_pages().items()}
    texts["package/index.md"] += _menu({None: {name: name for name in site_api.front()}})
    texts["glossary.md"], texts["slides.md"] = _glossary(), _decks(notebooks, out)
    for page in pages:
        if (ROOT / f"{page}.md").exists():
            texts[f"{page}.md"] = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    short = {f"notebooks/{name}": title for title, name in re.findall(r"\[([^\]]+)\]\(notebooks/(\d\d\w+)", readme)}
    lessons = {short.get(f"notebooks/{name}", name): f"notebooks/{name}" for name, _, _ in notebooks}
    texts["index.md"] = readme + _menu({"Notebooks": lessons, **MENU})
    for name, text in texts.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shown = _one_title(_links(text, PurePosixPath(name).parent, pages, source))
        (source / name).write_text(shown, encoding="utf-8")


def _menu(captions: Mapping[str | None, Mapping[str, str]]) -> str:
    trees = []
    for caption, entries in captions.items():
        options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
        lines = [f"{title} <{page}>" for title, page in entries.items()]
        trees.append("\n".join(["", "```{toctree}", *options, "", *lines, "```", ""]))
    return "".join(trees)


def _links(text: str, folder: PurePosixPath, pages: Iterable[str], source: Path) -> str:
    """A text whose links lead to pages; of a link to another file of the repository the words remain."""

    def follow(link: re.Match) -> str:
        picture, words, target, _ = link.groups()
        file = Path(os.path.normpath(ROOT / folder / target))
        if "://" in target or not file.is_file() or file.name in AS_FILES:
            return link[0]
        if picture or file.suffix in (".png", ".gif"):
            (source / folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, source / folder / target)
            return link[0]
        return link[0] if file.relative_to(ROOT).with_suffix("").as_posix() in pages else words

    return LINK.sub(follow, text)


def _one_title(text: str) -> str:
    """A text with the strip of the course below its title; further titles, which a menu would list, become sections."""
    first, *rest = re.split(r"^(```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    title, _, below = first.partition("\n")
    parts = [below, *rest]
    parts[::2] = [re.sub(r"^# ", "## ", part, flags=re.MULTILINE) for part in parts[::2]]
    return f'{title}\n\n<hr class="course-tail">\n{"".join(parts)}'


def _glossary() -> str:
    """Symbols and words at the end of notebook 00 as a page, unfolded."""
    last = nbformat.read(find_notebooks(["00"])[0], as_version=4).cells[-1].source
    text = re.sub(r"</?details>\n*", "", last[last.index("## Symbols") :])
    text = re.sub(
        r"<summary>(.*)</summary>", lambda found: "" if f"## {found[1]}\n" in last else f"### {found[1]}", text
    )
    return f"# Symbols and glossary\n\n{text}"


# --- a notebook ---


def _notebook(name: str, notebook: nbformat.NotebookNode, pictures: Sequence[Mapping], out: Path):
    """A notebook for readers: machinery folded, checks as a line, pictures as files, sliders alive."""
    shown, waiting = nbformat.from_dict(notebook), list(pictures)
    place, folder = f"../slides/{name[:2]}", out / "slides" / name[:2]  # the decks show the same pictures
    for k, cell in enumerate(shown.cells):
        tags = cell.metadata.setdefault("tags", [])
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"^(\*\*Predict.*)$", _predict, cell.source, flags=re.MULTILINE)
            continue
        if any(tag.startswith("check-") for tag in tags):
            shown.cells[k] = new_markdown_cell('<p class="course-check">The check runs in JupyterLab.</p>')
            continue
        if {"machinery", "claims", "widget"} & {*tags} or cell.metadata.get("jupyter", {}).get("source_hidden"):
            tags.append("hide-input")
        outputs = [o if pictures and is_still(o) else _output(o, folder, place) for o in cell.outputs]
        if not pictures:  # a page has no cell that could be run
            for output in filter(is_still, outputs):
                output.data["text/html"] = "".join(output.data["text/html"]).replace(
                    HINT, "The slider moves in JupyterLab."
                )
        if "widget" in tags and pictures:
            require(waiting, name, "fewer folders of frames than sliders", "frames of a run of this notebook")
            index = waiting.pop(0)
            number = len(pictures) - len(waiting) - 1
            shutil.copytree(index["folder"], folder / f"slider_{number}", ignore=shutil.ignore_patterns("index.json"))
            whole = all((folder / f"slider_{number}" / file).is_file() for file, _ in index["frames"])
            require(whole, name, "frames that changed meanwhile", "one command at a time that runs this notebook")
            alive = _html(figure_html(index, f"{place}/slider_{number}"))
            outputs = [alive if is_still(output) else output for output in outputs]
        cell.outputs = outputs
    require(not waiting, name, "more folders of frames than sliders", "frames of a run of this notebook")
    return shown


def is_still(output: nbformat.NotebookNode) -> bool:
    """Whether this is the first position of an `explore()`."""
    return "explore-still" in "".join(output.get("data", {}).get("text/html", ""))


def _predict(found: re.Match) -> str:
    return f'<div class="course-predict">\n\n{found[1]}\n\n</div>'


def _html(text: str):
    return new_output("display_data", {"text/html": text})


def _output(output: nbformat.NotebookNode, folder: Path, place: str):
    text = as_html(output, folder, place)
    return output if text is None else _html(text)


# --- slides ---


def _decks(notebooks: Sequence[Taken], out: Path) -> str:
    """Write every deck that has a plan; return the page that leads to them."""
    plans, rows = slides.read_plans(), []
    for name, notebook, pictures in notebooks:
        number = name[:2]
        if number in plans:
            for minutes in slides.MINUTES:
                deck = slides.slides_of(notebook, plans[number], minutes, number, pictures)
                slides.write(deck, out / "slides", f"{number}_{minutes}.html")
            links = [f'<a href="slides/{number}_{m}.html">{number} in {m} minutes</a>' for m in slides.MINUTES]
            rows.append(f"| [{number}](notebooks/{name}.ipynb) | {' | '.join(links)} |")
    lines = [f"| notebook {'| slides ' * len(slides.MINUTES)}|", "|---" * (1 + len(slides.MINUTES)) + "|", *rows]
    return "# Slides\n\n" + DECKS + "\n".join(["", "", *lines, ""])


# --- Sphinx ---


def _run_sphinx(source: Path, out: Path, trees: Path) -> None:
    from sphinx.application import Sphinx  # here: it is in the extra [site]

    complaints = io.StringIO()
    app = Sphinx(
        source,
        None,
        out,
        trees,
        "html",
        confoverrides=SETTINGS,
        status=None,
        warning=complaints,
        parallel=os.cpu_count() or 1,
    )
    app.build()
    said = re.sub(r"\x1b\[[\d;]*m", "", complaints.getvalue()).replace(f"{source}{os.sep}", "")  # without colours
    require(not said, "site", said, "no complaint of Sphinx")


def megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main(arguments: Sequence[str]) -> int:
    """Build the site, and check it if asked to. Exit code 1: the check found something; 2: it could not be built."""
    parser = argparse.ArgumentParser(prog="course.py site", description="Make the web site of the course.")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder (by default: site)")
    parser.add_argument("--still", action="store_true", help="execute nothing; sliders stay at their first position")
    parser.add_argument("--check", action="store_true", help="then look at every link, and at every page in a browser")
    chosen = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        out = located(chosen.out)
        check_place(out)  # before notebooks run for minutes
        if chosen.check:
            site_check.check_packages()
        notebooks = take(chosen.still)
        taken = time.perf_counter()
        numbers = build(out, notebooks)
    except (ValueError, OSError, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        say(error, sys.stderr)
        return 2
    built = time.perf_counter()
    counted = ", ".join(f"{number} {what}" for what, number in numbers.items())
    say(f"{out}: {counted}, {megabytes(out):.1f} MB")
    say(f"{taken - start:.0f} s for notebooks and frames, {built - taken:.0f} s for the pages")
    if not chosen.check:
        return 0
    return site_check.main([str(out)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
