"""Build "Webster's fields": definitions of Webster's dictionary of 1913, and the field each one is marked with.

    apt-get download dict-gcide && dpkg -x dict-gcide_*.deb unpacked      # nothing is installed
    python data/build_webster.py build unpacked      # two minutes, same bytes each time -> webster.csv.gz, .sha256
    python data/build_webster.py datasheet           # the generated tables in WEBSTER.md

The source is GCIDE, an electronic edition of the dictionary that has grown since; only what it marks as part of the
edition of 1913 is taken. The rules, in this order:

1. A paragraph lies between empty lines. A line such as `Corm \\\\Corm\\\\, n.` names the headword from there on.
2. Kept: a paragraph with one field label of FIELDS, such as (Bot.), and one mark of its source, [1913 Webster], under a
   headword with a capital letter, as the edition of 1913 prints them.
3. The text goes from the label to the mark. `clean()` takes out remarks, authors, counters, derived words, and
   references to other entries.
4. Left out: texts of fewer than 5 words, or with a rest of mark-up; words of 1913 for groups of people (DATED); a text
   that is nearly an earlier one (SIMILAR or more of their character 5-grams in common), whatever its field.
5. Left out: fields with fewer than FEWEST texts.
6. Splits: in each field, the rarest first, headwords in the order of a hash. The first 20 headwords give one text each
   to the test, the next 8 one each to validation. All other texts of those headwords, in any field, are left out; the
   rest is for training.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIELDS = dict(
    part.split(" = ")
    for part in (
        "Zool. = zoology; Bot. = botany; Chem. = chemistry; Med. = medicine; Anat. = anatomy; Naut. = seafaring; "
        "Law = law; Min. = mineralogy; Biol. = biology; Mus. = music; Arch. = architecture; Mil. = military; "
        "Physiol. = physiology; Math. = mathematics; Physics = physics; Astron. = astronomy; Geol. = geology; "
        "Mach. = machinery; Geom. = geometry; Her. = heraldry; Elec. = electricity; Gram. = grammar; Eccl. = church; "
        "Mech. = mechanics; Paleon. = paleontology; Surg. = surgery; Print. = printing; Fort. = fortification; "
        "Com. = commerce; Logic = logic; Rhet. = rhetoric; Theol. = theology; Metal. = metallurgy; Opt. = optics; "
        "Far. = farriery; Crystallog. = crystallography; Cookery = cookery; Rom. Antiq. = ancient Rome; "
        "Fine Arts = fine arts; Photog. = photography; Script. = scripture; Pros. = prosody; "
        "Gr. Antiq. = ancient Greece; Steam Engine = steam engines; Agric. = agriculture; Phon. = phonetics; "
        "Hort. = horticulture; Jewish Antiq. = ancient Israel"
    ).split("; ")
)
SPLITS = {"train": 0, "validation": 8, "test": 20}  # texts of each field; for training all that are left
FEWEST, FEWEST_WORDS, SIMILAR, GRAM = 36, 5, 0.5, 5

LABEL = re.compile(rf"\(({'|'.join(map(re.escape, FIELDS))})\)")
HEADWORD = re.compile(r"(\S[^\\\n]*?) \\")
SOURCE = re.compile(r"\[([^\]]*(?:Webster|PJC|WordNet|AS|RP|JDB|Century)[^\]]*)\]")
DATED = re.compile(
    r"\b(negro\w*|negress\w*|savages?|squaws?|papooses?|redskins?|hottentots?|kaff?irs?|bushm[ae]n|eskimos?|esquimau\w*|"
    r"mulatto\w*|half-breeds?|coolies?|mongolians?|chinam[ae]n|hindoos?|gyps(y|ies)|moham+edan\w*|mahometan\w*|"
    r"barbarians?|heathens?|infidels?|inferior races?|uncivilized|aborigines|"
    r"idiots?|idiocy|imbecil\w*|lunatics?|lunacy|cretins?|prostitutes?)\b",
    re.IGNORECASE,
)
# Letters that GCIDE writes in square brackets: [ae] is one letter, [deg] a sign, [=o] and [e^] carry an accent.
SIGNS = {"deg": " degrees", "frac12": " 1/2", "frac14": " 1/4", "root": " root", "imac": "i", "aum": "a", "eth": "th"}
ACCENTED = re.compile(r"\[(?:[^\w\s\]]{1,2}(\w{1,2})|(\w{1,2})[\^~`'\"]|(ae|oe|AE|OE))\]")
PARTS_OF_SPEECH = r"(?:n|a|adv|v|v\. ?t|v\. ?i|p\. ?a|n\. ?pl)\."
DERIVED = re.compile(rf"--\s*\{{[^}}]*\}}(?:\s*\([^)]*\))?,?\s*{PARTS_OF_SPEECH}(?:\s*\[[^\]]*\])?")
AUTHOR = re.compile(
    r"--(?:[A-Z0-9]| [A-Z]\.)[^\n]*(?:\n\s*(?:[A-Z0-9][\w.&' ]{0,18}(?=\n|$)))?"
)  # a dash before a word has a space
ABBREVIATED = r"(?:Illusts?|Illustration|Fig|Dr|St|No|n|a|v|t|i|pl|adv)\."
REFERENCE = re.compile(  # to another entry, up to the end of the sentence
    rf"(?:^|(?<=[.;,(]))\s*(?:--\s*)?(?:(?:See|Compare|Same as)\b|Cf\.)(?:{ABBREVIATED}|[^.;)])*[.;]?"
)
BEYOND = re.compile(r"[^\x20-\x7e]")


def clean(text: str) -> str:
    """One line of plain ASCII: what a paragraph says between its label and the mark of its source."""
    text = re.split(r"\b(?:Note|Syn):", text)[0]
    for sign, meaning in SIGNS.items():
        text = text.replace(f"[{sign}]", meaning)
    text = ACCENTED.sub(lambda found: next(filter(None, found.groups())), text)
    text = AUTHOR.sub("", DERIVED.sub("", text))
    text = re.sub(r"\[[^\[\]]*\]", " ", text)  # remarks, such as [Obs.]
    text = re.sub(rf"--\s*{PARTS_OF_SPEECH}\s", " ", text)  # "-- n. One of the ..." goes on as a noun
    text = re.sub(r"\((?:[a-z]|see [^)]*)\)", " ", text)  # counters and references
    text = re.sub(r"\s+", " ", BEYOND.sub(" ", re.sub(r"[{}]", "", text))).strip()
    text = REFERENCE.sub("", re.sub(r"^\W*\d+\.\s", "", text))
    text = re.sub(r"\s+([,.;)])", r"\1", re.sub(r"\s+", " ", text.replace("()", "")))
    return re.sub(r"^[\s,;.:\-]+", "", text).strip(" ,;:-")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[0-9]+", text.lower())


def damaged(text: str) -> bool:
    """A bracket alone, mark-up, or a sign that the typists could not read."""
    return text.count("(") != text.count(")") or bool(re.search(r"[\[\]{}<>|\\?]|\(\)", text))


def read(file: Path) -> tuple[list[tuple[str, str, str]], Counter]:
    """Rules 1 to 4 but for near copies: (field, headword, text) in the order of the book, and what was left out."""
    rows, out, headword = [], Counter(), ""
    book = gzip.decompress(file.read_bytes()).decode("ascii", "replace")
    for paragraph in re.split(r"\n[ \t]*\n", book):
        if found := HEADWORD.match(paragraph.lstrip("\n")):
            headword = found[1]
        labels = LABEL.findall(paragraph)
        if not labels:
            continue
        out["paragraphs with a label"] += 1
        marks = [re.sub(r"\s+", " ", mark) for mark in SOURCE.findall(paragraph)]
        text = clean(paragraph.split(f"({labels[0]})", 1)[1].split("[1913")[0])
        reasons = {
            "headword in small letters: not of 1913": not headword[:1].isupper(),
            "another source, or none": marks != ["1913 Webster"],
            "more than one label": len(labels) > 1,
            f"fewer than {FEWEST_WORDS} words": len(words(text)) < FEWEST_WORDS,
            "a rest of mark-up": damaged(text),
            "words of 1913 for groups of people": bool(DATED.search(text)),
        }
        if reason := next((reason for reason, is_so in reasons.items() if is_so), None):
            out[reason] += 1
        else:
            rows.append((FIELDS[labels[0]], headword, text))
    return rows, out


def near_copies(texts: list[str]) -> Iterator[int]:
    """Places of texts that share at least SIMILAR of their character 5-grams (Jaccard) with an earlier text that stays.

    Exact: two such sets have one of the rarest grams in common, of each the rarest `n - ceil(SIMILAR n) + 1`.
    """
    grams = []
    for text in texts:
        line = " ".join(words(text))
        grams.append({line[i : i + GRAM] for i in range(max(1, len(line) - GRAM + 1))})
    often = Counter(gram for each in grams for gram in each)
    seen: dict[str, list[int]] = defaultdict(list)
    for i, mine in enumerate(grams):
        n = len(mine)
        rarest = sorted(mine, key=lambda gram: (often[gram], gram))[: n - math.ceil(SIMILAR * n) + 1]
        least, most = n * SIMILAR, n / SIMILAR
        earlier = {j for gram in rarest for j in seen[gram] if least <= len(grams[j]) <= most}
        if any((both := len(mine & grams[j])) >= SIMILAR * (n + len(grams[j]) - both) for j in earlier):
            yield i
            continue
        for gram in rarest:
            seen[gram].append(i)


def split(rows: list[tuple[str, str, str]]) -> tuple[list[tuple[str, ...]], int]:
    """Rule 6: rows (split, field, headword, text), split by split, the largest field first; how many were left out."""
    sizes = Counter(field for field, _, _ in rows)
    fields = sorted(sizes, key=lambda field: (-sizes[field], field))
    chosen: dict[int, str] = {}
    taken: set[str] = set()
    for field in reversed(fields):
        mine = [i for i, row in enumerate(rows) if row[0] == field]
        places = (name for name in ("test", "validation") for _ in range(SPLITS[name]))
        for i in sorted(mine, key=lambda i: hashlib.sha256("\t".join(rows[i]).encode()).hexdigest()):
            if rows[i][1] not in taken and (place := next(places, None)):
                chosen[i] = place
                taken.add(rows[i][1])
    kept = [(chosen.get(i, "train"), *row) for i, row in enumerate(rows) if i in chosen or row[1] not in taken]
    kept.sort(key=lambda row: (list(SPLITS).index(row[0]), fields.index(row[1])))
    return kept, len(rows) - len(kept)


def build(unpacked: Path) -> None:
    """Write webster.csv.gz, its SHA-256 and webster.json, the numbers for the datasheet."""
    rows, out = read(unpacked / "usr/share/dictd/gcide.dict.dz")
    copies = set(near_copies([text for _, _, text in rows]))
    rows = [row for i, row in enumerate(rows) if i not in copies]
    sizes = Counter(field for field, _, _ in rows)
    out["nearly the same as an earlier text"] = len(copies)
    out[f"in a field with fewer than {FEWEST}"] = sum(n for n in sizes.values() if n < FEWEST)
    rows, out["of a headword that test or validation has"] = split([r for r in rows if sizes[r[0]] >= FEWEST])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("split", "field", "word", "definition"), *rows])
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as file:
        file.write(text.getvalue().encode())
    (HERE / "webster.csv.gz").write_bytes(packed.getvalue())
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    (HERE / "webster.sha256").write_text(f"{digest}  webster.csv.gz\n")
    with gzip.open(unpacked / "usr/share/doc/dict-gcide/changelog.Debian.gz", "rt") as file:
        made_from = file.readline().split(";")[0].split(" unstable")[0]
    (HERE / "webster.json").write_text(json.dumps({"source": made_from, **out}, indent=1) + "\n")


def datasheet() -> None:
    """Write the generated parts of WEBSTER.md."""
    out = json.loads((HERE / "webster.json").read_text())
    with gzip.open(HERE / "webster.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = Counter((row["field"], row["split"]) for row in rows)
    fields = list(dict.fromkeys(row["field"] for row in rows))
    lengths = sorted(len(words(row["definition"])) for row in rows)
    one_in_ten = lengths[len(lengths) // 10], lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10]
    named = sum(row["field"].lower()[:5] in row["definition"].lower() for row in rows) / len(rows)
    total = {name: sum(counts[field, name] for field in fields) for name in SPLITS}
    digest = (HERE / "webster.sha256").read_text().split()[0]
    tail = [counts[field, "train"] for field in fields]
    parts = [
        f"Made from {out.pop('source')}; SHA-256 `{digest}`.",
        f"{len(fields)} fields; " + ", ".join(f"{name} {n:,}" for name, n in total.items()) + f". Training texts of a "
        f"field: {max(tail):,} to {min(tail)}. Words of a text: {one_in_ten[1]} in the middle, {one_in_ten[0]} to "
        f"{one_in_ten[2]} for eight of ten, {lengths[-1]} at most.\n{named:.0%} of the texts hold the first five "
        "letters of their own field's name.",
        "| field | "
        + " | ".join(SPLITS)
        + " |\n|---|---|---|---|\n"
        + "\n".join(f"| {field} | {' | '.join(f'{counts[field, name]:,}' for name in SPLITS)} |" for field in fields),
        "What became of the paragraphs:\n\n| | |\n|---|---|\n"
        + "\n".join(f"| {reason} | {n:,} |" for reason, n in out.items())
        + f"\n| **stay** | **{len(rows):,}** |",
    ]
    start, end = "<!-- generated -->", "<!-- end generated -->"
    page = (HERE / "WEBSTER.md").read_text(encoding="utf-8")
    before, after = page.split(start)[0], page.split(end)[1]
    (HERE / "WEBSTER.md").write_text(before + "\n\n".join([start, *parts, end]) + after, encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[2])) if sys.argv[1:2] == ["build"] else datasheet()
