"""Pages of the site about the files of the package: signatures, docstrings and code. Nothing is imported for it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
IN_MAP = re.compile(r"^    (\w+) {2,}(.+)$", re.MULTILINE)  # a line of the map in course_utils/__init__.py
Definition = ast.FunctionDef | ast.ClassDef
WIDTH = 88  # of a signature on one line


class Page:
    """What a page about one file needs: the file's tree, its text, and the names that one can link to."""

    def __init__(self, path: Path):
        text = path.read_text(encoding="utf-8")
        self.name, self.lines, self.tree = path.stem, text.splitlines(), ast.parse(text)
        found = [node for node in self.tree.body if isinstance(node, Definition)]
        self.public = [node for node in found if not node.name.startswith("_")]


def front() -> dict[str, str]:
    """{name: what is in it} of every file in front of the package, in reading order."""
    about = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
    return {name: what for name, what in IN_MAP.findall(about) if (PACKAGE / f"{name}.py").exists()}


def lesson_pages() -> dict[str, str]:
    """{name of the page: Markdown} of the files in front of the package, and `index`, the map."""
    files = front()
    pages = {name: Page(PACKAGE / f"{name}.py") for name in files}
    places = {f"{page.name}.{node.name}": page.name for page in pages.values() for node in page.public}
    rows = "\n".join(f"| [{name}]({name}.md) | {_escaped(what)} |" for name, what in files.items())
    index = (
        "# The package\n\nThe methods as the notebooks teach them. Each page has the signatures, what stands in the "
        "docstrings, and the code,\nwith the equation above the line that computes it.\n\n"
        f"| file | what is in it |\n|---|---|\n{rows}\n"
    )
    return {"index": index, **{name: _page(page, places) for name, page in pages.items()}}


def _page(page: Page, places: dict[str, str]) -> str:
    parts = [f"# {page.name}", f"`course_utils/{page.name}.py`", _markdown(page.tree, [], page, places)]
    for node in page.public:
        parts += [f"## {node.name}", _fenced(_signature(node)), _markdown(node, _arguments(node), page, places)]
        for method in _methods(node):
            shown = _markdown(method, _arguments(method), page, places)
            parts += [f"### {node.name}.{method.name}", _fenced(_signature(method)), shown]
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        code = "\n".join(page.lines[first - 1 : node.end_lineno])
        parts.append(f"<details>\n<summary>Code of {node.name}</summary>\n\n{_fenced(code)}\n\n</details>")
    return "\n\n".join(part for part in parts if part) + "\n"


def _methods(node: Definition) -> Iterator[ast.FunctionDef]:
    """The public methods of a class that say what they do."""
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and ast.get_docstring(method):
            yield method


def _signature(node: Definition) -> str:
    """`name(arguments) -> result` as it is written, on one line if it fits."""
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is None:
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n)]
            return _wrapped(f"class {node.name}", [ast.unparse(field) for field in fields], "")
        node, head = init, f"class {node.name}"
    else:
        head = node.name
    arguments = [
        part for part in _split(ast.unparse(node.args).replace("'", '"')) if not re.match(r"(self|cls)\b", part)
    ]
    arguments = [re.sub(r"^(\*{0,2}\w+: [^=]*[^= ])=", r"\1 = ", part) for part in arguments]  # as ruff writes it
    result = f" -> {ast.unparse(node.returns)}" if node.returns and not head.startswith("class ") else ""
    return _wrapped(head, arguments, result)


def _wrapped(head: str, arguments: list[str], result: str) -> str:
    line = f"{head}({', '.join(arguments)}){result}"
    return line if len(line) <= WIDTH else "\n".join([f"{head}(", *(f"    {a}," for a in arguments), f"){result}"])


def _split(arguments: str) -> list[str]:
    """The arguments one by one; a comma inside of brackets divides nothing."""
    parts, depth, start = [], 0, 0
    for k, sign in enumerate(arguments):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth:
            parts.append(arguments[start:k].strip())
            start = k + 1
    return [*parts, arguments[start:].strip()] if arguments else []


def _arguments(node: Definition) -> list[str]:
    """Names that a docstring explains in the form `name: what it is`."""
    if isinstance(node, ast.ClassDef):
        fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        return fields + [name for n in node.body if isinstance(n, ast.FunctionDef) for name in _arguments(n)]
    given = node.args
    return [a.arg for a in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg] if a]


def _markdown(node: Definition | ast.Module, arguments: list[str], page: Page, places: dict[str, str]) -> str:
    """A docstring as Markdown: paragraphs, `Args:` and the like as bold words, one line for each argument."""
    text = ast.get_docstring(node, clean=False)
    blocks = re.split(r"\n\s*\n|\n(?= *[A-Z]\w+:\n)|(?<=:)\n(?= {4,})", inspect.cleandoc(text)) if text else []
    known = "|".join(map(re.escape, arguments))
    start_of_one = re.compile(rf"(?:^|(?<=[.;] ))\*{{0,2}}((?:(?:{known}), )*(?:{known})): ") if known else None
    shown = []
    for block in blocks:
        plain = " ".join(line.strip() for line in block.splitlines())
        found = list(start_of_one.finditer(plain)) if start_of_one else []
        if re.fullmatch(r"[A-Z]\w+:", plain):
            shown.append(f"**{plain}**")
        elif found and not found[0].start():
            ends = [one.start() for one in found[1:]] + [len(plain)]
            said = [(one[1], plain[one.end() : end].strip()) for one, end in zip(found, ends, strict=True)]
            shown.append("\n".join(f"- `{name}`: {_linked(what, page, places)}" for name, what in said))
        else:
            shown.append(_linked(plain, page, places))
    return "\n\n".join(shown)


def _linked(text: str, page: Page, places: dict[str, str]) -> str:
    """Text with its `code` linked to where that is explained, and all signs of Markdown outside of code escaped."""
    parts = text.split("`")
    for k, part in enumerate(parts):
        name = part.split("(")[0]
        full = name if name in places else f"{page.name}.{name}"
        if k % 2 == 0:
            parts[k] = _escaped(part)
        elif full in places:
            parts[k] = f"[`{part}`]({places[full]}.md#{full.split('.')[1].lower()})"
        else:
            parts[k] = f"`{part}`"
    return "".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_<>\[\]$~|{}])", r"\\\1", text)


def _fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"
