"""Published numbers beside ours: data/published.json, where each came from, and what is not the same.

A study whose settings are those of a published protocol gets a part of its report from here, and notebooks show tables
with `published_table()`. Numbers are in % as accuracies; the file has them as they were printed.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..classroom import figures
from ..metrics import mean_and_spread, paired_interval
from ..runtime import require
from .studies import USUAL

FILE = Path(__file__).resolve().parents[2] / "data" / "published.json"
LARGE = 3.0  # points: a larger difference is explained, or said to be unexplained
OURS = "ours [95 %]"


@dataclass(frozen=True)
class Published:
    """One number of a paper.

    protocol: a key of "protocols" in the file. method: our name where we have it; called: theirs. group: "all", "many",
    "average" ... value: accuracy in %, or F. kind: a key of "kinds". best_on_test: whether it is of the epoch that was
    best on the test. seeds: how many; None in both: not said. note: of the source; own: of this method in it.
    """

    protocol: str
    method: str
    group: str
    value: float
    kind: str
    source: str
    where: str
    called: str
    best_on_test: bool | None
    seeds: int | None
    note: str = ""
    own: str = ""


@lru_cache(maxsize=4)
def _content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_published(path: Path = FILE) -> list[Published]:
    """Every number of the file, in its order.

    Raises:
        ValueError: a kind, source, protocol or recipe that the file does not describe, or a row with too few or too
            many values.
    """
    content, found = _content(path), []
    for name, protocol in content["protocols"].items():
        recipe = protocol.get("recipe")
        known = recipe in (None, *content["recipes"])
        require(known, f"{path.name}: {name}, recipe", recipe, ", ".join(content["recipes"]))
    for block in content["values"]:
        for name in ("kind", "source"):
            require(
                block[name] in content[f"{name}s"], f"{path.name}: {name}", block[name], ", ".join(content[f"{name}s"])
            )
        require(block["metric"] in ("accuracy", "error"), f"{path.name}: metric", block["metric"], "accuracy, error")
        same = block["kind"], block["source"], block["where"]
        for method, values in block["rows"].items():
            columns = block["columns"]
            require(len(values) == len(columns), f"{path.name}: {method}", len(values), f"{len(columns)} values")
            called, own = (
                block.get(name, {}).get(method, default) for name, default in (("called", method), ("notes", ""))
            )
            for (protocol, group), value in zip(columns, values, strict=True):
                known = content["protocols"]
                require(protocol in known, f"{path.name}: protocol", protocol, ", ".join(known))
                if value is not None:
                    accuracy = round(100 - value, 2) if block["metric"] == "error" else value
                    rest = block["best epoch on test"], block["seeds"], block.get("note", ""), own
                    found.append(Published(protocol, method, group, accuracy, *same, called, *rest))
    return found


def values(protocol: str, source: str, group: str = "all") -> dict[str, float]:
    """{method: its number} of one source; the first where there are two."""
    about(protocol)
    found = [o for o in read_published() if (o.protocol, o.source, o.group) == (protocol, source, group)]
    require(found, "source, group", f"{source!r}, {group!r}", f"those with numbers for {protocol}")
    return {one.method: one.value for one in reversed(found)}  # so that the first is written last, and stays


def protocols_of(settings: Mapping[str, Any]) -> list[str]:
    """The published protocols that a study with these settings follows; none for most.

    Not part of a protocol: precision and where images for choices come from, which `not_the_same()` tells, and of a
    cosine schedule when DRW starts.
    """
    found, content = USUAL | dict(settings), _content(FILE)
    wanted = {name: _whole(content, about) for name, about in content["protocols"].items() if "settings" in about}
    return [name for name, own in wanted.items() if own.items() <= {k: found.get(k) for k in own}.items()]


def _whole(content: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a protocol: its recipe, if it shares one with others, and its own."""
    shared = content["recipes"][protocol["recipe"]] if "recipe" in protocol else {}
    return shared | protocol["settings"]


def about(protocol: str) -> dict[str, Any]:
    """What the file says about a protocol: "what", and maybe "images", of training, "test", "recipe", "settings"."""
    known = _content(FILE)["protocols"]
    require(protocol in known, "protocol", repr(protocol), ", ".join(known))
    return known[protocol]


# ---- beside ours -----------------------------------------------------------------------------------------------------


def accuracies(seeds: Mapping[int, Mapping[str, Any]], group: str = "all") -> list[float]:
    """Of one method of `reports.rows_of()`, in %, one for each seed."""
    return [100 * row["groups"][group] for row in seeds.values()]


def ours_text(values: Sequence[float]) -> str:
    """ "76.1 [75.0, 77.2]", or "76.1, one seed"."""
    mean = f"{mean_and_spread(values)[0]:.1f}"
    if len(values) == 1:
        return f"{mean}, one seed"
    low, high = paired_interval(values)
    return f"{mean} [{low:.1f}, {high:.1f}]"


def verdict(value: float, ours: Sequence[float]) -> str:
    """What is known about our mean minus a published number, in points.

    "small" up to `LARGE` points. Only what was measured explains: "explained by seeds", if the 95 % interval of ours
    holds the number; else "unexplained".
    """
    if abs(mean_and_spread(ours)[0] - value) <= LARGE:
        return "small"
    if len(ours) >= 3:  # two seeds have an interval that holds nearly everything
        low, high = paired_interval(ours)
        if low <= value <= high:
            return "explained by seeds"
    return "unexplained"


def compared(protocol: str, rows: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, str]]:
    """For `figures.show_table()`: the published accuracies over all classes of methods that have cells, and ours."""
    there = [o for o in read_published() if (o.protocol, o.group) == (protocol, "all") and o.method in rows]
    found, order = [], list(rows)
    for one in sorted(there, key=lambda one: order.index(one.method)):
        ours = accuracies(rows[one.method])
        difference = f"{mean_and_spread(ours)[0] - one.value:+.1f} {verdict(one.value, ours)}"
        found.append(
            {"method": one.method, "published": f"{one.value:.1f}", "source": one.source, "kind": one.kind}
            | {"best on test": _said(one.best_on_test), "seeds": _said(one.seeds), OURS: ours_text(ours)}
            | {"ours minus it": difference}
        )
    return found


def _said(value: bool | int | None) -> str:
    return "not said" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def left_out(protocol: str, rows: Mapping[str, Any]) -> list[str]:
    """The methods with a published number that have no cells, in words; empty if there are none."""
    names = dict.fromkeys(one.method for one in read_published() if one.protocol == protocol and one.group == "all")
    gone = [name for name in names if name not in rows]
    return [f"Published, without a training here: {len(gone)} methods ({', '.join(gone)})."] if gone else []


def not_the_same(
    protocol: str, settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], methods: Sequence[str]
) -> list[str]:
    """Where a difference must come from, as far as one can tell: sentences. None of them says how much."""
    found, counts = about(protocol), cells[0]["data"]["counts"]
    values = [one for one in read_published() if one.protocol == protocol and one.method in methods]
    lines = []
    notes = sorted({cell["data"]["note"] for cell in cells if "not the published pixels" in cell["data"]["note"]})
    lines += [f"Pixels: {note}." for note in notes] or ["Pixels: the published ones."]
    if "images" in found:
        n, aside = sum(counts), "" if sum(counts) >= found["images"] else ", as some are set aside for choices"
        drawn = "" if settings.get("profile") == "as it is" else "; every seed here draws its own"
        lines += [f"Training images: {n:,}, published {found['images']:,}{aside}{drawn}."]
    tested = cells[0]["data"]["test"]
    if tested != found.get("test", tested):
        lines += [f"Test images: {tested:,} here, published {found['test']:,}; the others are for choices here."]
    by_epoch = {best: sorted({o.source for o in values if o.best_on_test is best}) for best in (True, False, None)}
    said = [f"{what}: {', '.join(by_epoch[best])}" for best, what in _EPOCHS.items() if by_epoch[best]]
    lines += [f"Epoch: here the last one; {'; '.join(said)}. The table best-epoch measures that habit on letters."]
    seeds = {o.source: _said(o.seeds) for o in values}
    lines += [
        f"Seeds: {len({cell['seed'] for cell in cells})} here; {', '.join(f'{s}: {n}' for s, n in seeds.items())}."
    ]
    precisions = ", ".join(sorted({cell["precision"] for cell in cells}))
    lines += [f"Network: {settings['network']} in {precisions} here; published: {found['what']}."]
    return lines + notes_of(values)


def notes_of(values: Sequence[Published]) -> list[str]:
    """What the file says about how these numbers were made: a sentence for each source, and for single methods."""
    lines = dict.fromkeys(f"{o.source}: {o.note}." for o in values if o.note)
    return [*lines, *dict.fromkeys(f"{o.method} of {o.source}: {o.own}." for o in values if o.own)]


_EPOCHS = {True: "the best on the test", False: "not chosen on the test", None: "not said"}


def report_parts(
    settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[int, Mapping]]
) -> list[str]:
    """Paragraphs of a report as Markdown; none if the study follows no published protocol."""
    parts = []
    for protocol in protocols_of(settings):
        table = compared(protocol, rows)
        if table:
            lines = [
                " | ".join(table[0]),
                "---|" * (len(table[0]) - 1) + "---",
                *(" | ".join(r.values()) for r in table),
            ]
            sources = dict.fromkeys(one["source"] for one in table)
            kinds = {one["kind"]: _content(FILE)["kinds"][one["kind"]] for one in table}
            parts += [
                f"## Beside published numbers: {about(protocol)['what']}",
                f"Accuracy over all classes in %. Kinds: {'; '.join(f'{k}: {v}' for k, v in kinds.items())}. "
                f"A difference up to {LARGE:g} points is called small; a larger one is explained by seeds if our "
                "interval holds the published number, and is unexplained else.",
                "\n".join(f"| {line} |" for line in lines),
                *left_out(protocol, rows),
                "Where a difference must come from (how much each adds was not measured here):",
                "\n".join(f"- {line}" for line in not_the_same(protocol, settings, cells, list(rows))),
                "Sources: " + "; ".join(_content(FILE)["sources"][s] for s in sources) + ".",
            ]
    return parts


# ---- tables of notebooks ---------------------------------------------------------------------------------------------


def published_rows(
    *protocols: str, groups: Sequence[str] = ("all",), methods: Sequence[str] | None = None, their_names: bool = False
) -> list[dict[str, str]]:
    """For `figures.show_table()`: one row for each method and source, one column for each protocol and group.

    methods: only these, in this order; None: all. their_names: methods are called as in the source.

    Raises:
        ValueError: an unknown protocol, or nothing published for what was asked.
    """
    for protocol in protocols:
        about(protocol)
    titles = {
        (protocol, group): group if len(protocols) == 1 else protocol if len(groups) == 1 else f"{protocol}: {group}"
        for protocol in protocols
        for group in groups
    }
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for one in read_published():
        if (methods is None or one.method in methods) and (one.protocol, one.group) in titles:
            name = one.called if their_names else one.method
            fresh = {"method": name} | dict.fromkeys(titles.values(), "–") | {"source": one.source, "kind": one.kind}
            row = rows.setdefault((one.method, name, one.source, one.kind), fresh)
            row[titles[one.protocol, one.group]] = f"{one.value:.1f}"
    require(rows, "protocols, groups, methods", f"{protocols}, {groups}, {methods}", "those with published numbers")
    order = list(dict.fromkeys(key[0] for key in rows) if methods is None else methods)
    return [row for name in order for key, row in rows.items() if key[0] == name]


def published_table(
    *protocols: str,
    groups: Sequence[str] = ("all",),
    methods: Sequence[str] | None = None,
    their_names: bool = False,
    rows: Mapping[str, Mapping[int, Mapping[str, Any]]] | None = None,
    note: str = "",
    notes: bool = False,
) -> None:
    """Show what papers report, or, with `rows` of `reports.rows_of()` for one protocol, ours beside it.

    Methods without cells are left out of that, and the line below counts them. `note` stands below the table; with
    `notes` follows what the file says about each source. Other arguments: `published_rows()`.

        published_table("cifar100-lt", methods=["cross-entropy", "LDAM + DRW"])
    """
    if rows:
        require(len(protocols) == 1, "protocols", protocols, "one, where ours stand beside it")
        shown = [{k: v for k, v in row.items() if k in _NARROW} for row in compared(protocols[0], rows)]
        require(shown, "rows", list(rows), f"methods with published numbers for {protocols[0]}")
        below = [note, *left_out(protocols[0], rows)]
    else:
        shown = published_rows(*protocols, groups=groups, methods=methods, their_names=their_names)
        below = [note or f"{'; '.join(about(protocol)['what'] for protocol in protocols)}; in %."]
    if notes:
        there = {(row["method"], row["source"]) for row in shown}
        found = [o for o in read_published() if o.protocol in protocols and o.group in groups]
        below += notes_of([o for o in found if (o.called if their_names else o.method, o.source) in there])
    figures.show_table(shown, textwrap.fill(" ".join(filter(None, below)), 88, break_on_hyphens=False))


_NARROW = ("method", "published", "source", OURS, "ours minus it")  # at most 90 characters wide
