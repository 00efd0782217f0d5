"""Texts as one tensor of word numbers, where they come from, and two networks that read them.

    train, test = (load_texts("webster", split) for split in ("train", "test"))
    model = BiLSTM(train.num_classes, vocabulary=len(train.vocabulary))
    fit(model, train, optimizer=torch.optim.Adam, lr=0.01, augment=word_dropout)

A word is a number, 1 is a word that the vocabulary lacks, and 0 fills up behind the last word of a text. `fit()`, the
samplers, losses, heads and methods of the course take texts as they take images.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .data import Labeled
from .machinery.checks import floats
from .machinery.files import csv_rows, roots_for
from .machinery.picture_files import SPLITS as CALLED
from .networks import ImageClassifier
from .runtime import digest, located, require

PADDING, UNKNOWN = 0, 1
SPLITS = ("train", "validation", "test")
_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # scripts without spaces between words
WORD = re.compile(rf"[{_ALONE}]|\d+|(?:(?![{_ALONE}])[^\W\d_])+(?:['’](?:(?![{_ALONE}])[^\W\d_])+)*")
Tokens = Callable[[str], Iterable[str]]


# ---- from a text to numbers ------------------------------------------------------------------------------------------


def words(text: str) -> Iterator[str]:
    """The words of a text, in small letters: runs of letters with apostrophes inside, and runs of digits.

    A Chinese character, a Japanese sign and a Thai letter is a word of its own. All else is left out. Letters that
    Unicode can write in several ways are one letter (NFKC).
    """
    return (found[0] for found in WORD.finditer(unicodedata.normalize("NFKC", text).lower()))


def vocabulary_of(
    texts: Iterable[str], *, at_least: int = 2, length: int | None = None, tokens: Tokens = words
) -> tuple[str, ...]:
    """ "", "?", then the words that *training* texts hold at least so often, the most frequent first.

    length: only the first words of each text count, as `encode()` reads them. tokens: instead of `words()`, a function
    from a text to its words, such as the `encode` of a tokenizer with `.tokens` taken.
    """
    require(at_least >= 1, "at_least", at_least, "at least 1")
    counts = Counter(word for text in texts for word in islice(tokens(text), length))
    kept = sorted((word for word, n in counts.items() if n >= at_least), key=lambda word: (-counts[word], word))
    return ("", "?", *kept)


def encode(texts: Sequence[str], vocabulary: Sequence[str], length: int, *, tokens: Tokens = words) -> Tensor:
    """Word numbers (N, length) of the first `length` words of each text, then 0. A text without any word is one "?".

    int16, or int32 for a vocabulary of 32,768 words and more.
    """
    require(length >= 1, "length", length, "at least 1")
    require(not isinstance(texts, str), "texts", "one string", "a list of texts")
    number = {word: i for i, word in enumerate(vocabulary)}
    found = torch.zeros(len(texts), length, dtype=torch.int16 if len(vocabulary) < 2**15 else torch.int32)
    for row, text in zip(found, texts, strict=True):
        numbers = [number.get(word, UNKNOWN) for word in islice(tokens(text), length)] or [UNKNOWN]
        row[: len(numbers)] = torch.tensor(numbers)
    return found


@dataclass(frozen=True, repr=False)
class LabeledTexts(Labeled):
    """Texts and their labels.

    tokens: int16 or int32 (N, T), word numbers 1 .. V - 1, then 0 up to the end; each text has a word at least.
    labels: int64 (N,), 0 to C - 1, on the same device. class_names: C names. vocabulary: V words, first "", "?".
    """

    KIND: ClassVar[str] = "tokens"

    tokens: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    vocabulary: tuple[str, ...]

    def __post_init__(self):
        tokens, size = self.tokens, len(self.vocabulary)
        seen = f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        whole = tokens.dtype in (torch.int16, torch.int32)
        require(tokens.ndim == 2 and whole, "tokens", seen, "int16 or int32 of shape (N, T)")
        if tokens.numel():
            low, high = tokens.aminmax()
            require(low >= 0 and high < size, "tokens", lambda: f"{low} to {high}", f"0 to {size - 1}")
            there = tokens != PADDING
            whole = there[:, 0].all() and (there[:, 1:] <= there[:, :-1]).all()
            require(whole, "tokens", "0 before or between words", "0 behind the last word of a text alone")
        super().__post_init__()

    def __repr__(self) -> str:
        texts = f"{len(self)} texts of up to {self.tokens.shape[1]} words, {len(self.vocabulary):,} of them known"
        return f"LabeledTexts({texts}, {self.num_classes} classes, on {self.device})"

    def text(self, index: int) -> str:
        """The words that a network sees of one text."""
        return " ".join(self.vocabulary[number] for number in self.tokens[index].tolist() if number)

    def digest(self) -> str:
        return digest(super().digest(), self.vocabulary)


def known_words(train: LabeledTexts, *others: Any, at_least: int = 2) -> list[LabeledTexts]:
    """All of them with a smaller vocabulary: the words that `train` holds at least so often; the others become "?".

    For a training set that was cut out of a larger one, by `long_tailed()` for instance, whose words it must not know.
    """
    require(at_least >= 1, "at_least", at_least, "at least 1")
    same = all(getattr(other, "vocabulary", None) == train.vocabulary for other in others)
    require(same, "others", "texts with another vocabulary", "the vocabulary of train")
    often = torch.bincount(train.tokens.flatten().long(), minlength=len(train.vocabulary)) >= at_least
    often[:2] = True
    number = torch.where(often, often.cumsum(0) - 1, UNKNOWN)
    kept = tuple(word for word, stays in zip(train.vocabulary, often.tolist(), strict=True) if stays)
    small = torch.int16 if len(kept) < 2**15 else torch.int32
    return [replace(data, tokens=number[data.tokens.long()].to(small), vocabulary=kept) for data in (train, *others)]


def word_dropout(tokens: Tensor, generator: torch.Generator, share: float = 0.2) -> Tensor:
    """An augmentation: each word becomes "?" with chance `share`, so that no network leans on one word alone.

    tokens: (B, T) on any device. The generator is a CPU generator, so that a seed hides the same words everywhere.
    """
    require(0 <= share <= 1, "share", share, "0 to 1")
    hidden = (torch.rand(tokens.shape, generator=generator) < share).to(tokens.device, non_blocking=True)
    return tokens.masked_fill(hidden & (tokens != PADDING), UNKNOWN)


# ---- two networks ----------------------------------------------------------------------------------------------------


class TextClassifier(ImageClassifier):
    """A backbone from word numbers (B, T) to features (B, D), and a head: the same attributes, the same methods."""

    def features(self, images: Tensor) -> Tensor:
        """(B, T) word numbers to (B, D) features."""
        tokens = images
        whole = tokens.ndim == 2 and not tokens.is_floating_point()
        require(whole, "tokens", f"{tokens.dtype} of shape {tuple(tokens.shape)}", "integers of shape (B, T)")
        return self.backbone(tokens.long())


def pooled(x: Tensor, there: Tensor, kind: str) -> Tensor:
    """Vectors of words (B, T, D) to one vector a text (B, D): their "mean" or "max", over the places of words alone.

    there: bool (B, T), where a word is. Without it the zeros behind a short text would take part.
    """
    require(kind in ("mean", "max"), "kind", repr(kind), "mean, max")
    (x,) = floats(x=x)
    fits = x.ndim == 3 and x.shape[:2] == there.shape
    require(fits, "x", f"shape {tuple(x.shape)}", f"(B, T, D) with (B, T) = {tuple(there.shape)}")
    if kind == "max":
        return x.masked_fill(~there[..., None], -torch.inf).amax(1)
    # sum_t there_t x_t / sum_t there_t
    there = there[..., None].to(x.dtype)
    return (x * there).sum(1) / there.sum(1)


def backward_places(tokens: Tensor) -> Tensor:
    """int64 (B, T): where the words of each text are, the last one first; padding stays where it is.

    Its own inverse: the same places bring what was read backwards into the order of the text.
    """
    length = (tokens != PADDING).sum(1, keepdim=True)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    # t -> length - 1 - t for t < length
    return torch.where(place < length, length - 1 - place, place)


def _embedding(vocabulary: int, size: int) -> nn.Embedding:
    """Rows that start at N(0, 0.1^2). Torch's own start, N(0, 1), drowns what a few sentences can teach a word."""
    layer = nn.Embedding(vocabulary, size, padding_idx=PADDING)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    return layer


class _Bag(nn.Module):
    def __init__(self, vocabulary: int, embedding: int, dropout: float):
        super().__init__()
        self.embedding, self.dropout = _embedding(vocabulary, embedding), nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(pooled(self.embedding(tokens), tokens != PADDING, "mean"))


class BagOfWords(TextClassifier):
    """The mean vector of a text's words, whatever their order: (B, T) word numbers to `embedding` features."""

    def __init__(self, num_classes: int, *, vocabulary: int, embedding: int = 128, dropout: float = 0.3, head=None):
        super().__init__(_Bag(vocabulary, embedding, dropout), embedding, num_classes, head)


class _TwoDirections(nn.Module):
    """LSTMs from left to right and from right to left, the maximum over the words.

    Padding lies behind the words, so the first direction meets it last, and for the second the words are turned around.
    The same as torch's bidirectional LSTM on packed sequences, which sorts, copies, and makes a GPU wait.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        sizes = [embedding] + [2 * hidden] * (layers - 1)
        self.embedding, self.dropout = _embedding(vocabulary, embedding), nn.Dropout(dropout)
        self.ahead = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.back = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        x, turned = self.dropout(self.embedding(tokens)), backward_places(tokens)[..., None]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            from_left = ahead(x)[0]
            from_right = back(x.gather(1, turned.expand_as(x)))[0]
            x = torch.cat([from_left, from_right.gather(1, turned.expand_as(from_right))], dim=2)
        return self.dropout(pooled(x, tokens != PADDING, "max"))


class BiLSTM(TextClassifier):
    """Hochreiter and Schmidhuber's LSTM in both directions: (B, T) word numbers to 2 * hidden features.

    vocabulary: V. layers: of LSTMs, each on top of the other. dropout: of word vectors and of features.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        vocabulary: int,
        embedding: int = 64,
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.3,
        head=None,
    ):
        require(layers >= 1, "layers", layers, "at least 1")
        backbone = _TwoDirections(vocabulary, embedding, hidden, layers, dropout)
        super().__init__(backbone, 2 * hidden, num_classes, head)


TEXT_NETWORKS: dict[str, Callable] = {  # {name: function of the size of the vocabulary -> a network for a `Setting`}
    "bag of words": lambda size: partial(BagOfWords, vocabulary=size),
    "BiLSTM": lambda size: partial(BiLSTM, vocabulary=size),
    "BiLSTM, two layers": lambda size: partial(BiLSTM, vocabulary=size, layers=2),
}


# ---- where texts come from -------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Texts and labels of each split, {split: (texts, labels)}, from where, and why a label may lack texts of one."""

    splits: dict[str, tuple[list[str], list[str]]]
    source: str
    why: str = ""


READ_UP_TO = {"webster": 24, "imdb": 200}  # words; a file: 200
AT_LEAST = {"imdb": 5}  # a word of the vocabulary occurs so often; elsewhere twice


def load_texts(
    name: str | Path,
    split: str,
    *,
    root: str | Path | None = None,
    text: str = "text",
    label: str = "label",
    encoding: str = "utf-8-sig",
    length: int | None = None,
    at_least: int | None = None,
    tokens: Tokens = words,
) -> LabeledTexts:
    """Read one split, on the CPU. The vocabulary is that of the training texts, whatever the split.

    Args:
        name: "webster" (definitions of 1913 by field, ships with the course); "imdb" (the folder aclImdb as it is
            unpacked: train/pos/*.txt and so on); or the path of a CSV file: .csv, .tsv with one line for each
            row, or either with .gz.
        split: "train", "test"; "validation" too, but for imdb.
        root: where to look first for imdb. Then come the folder in the environment variable COURSE_DATA, and data/.
        text, label, encoding: of a CSV file, the names of two columns, and how it was saved. A third column "split" is
            obeyed. Without one, of each label a quarter of the different texts is the test and 15 % are validation,
            rounded down, by a hash of the text, so that the same text is never in two splits. A warning names the
            labels that have no text of this split.
        length: words that are read of a text; by default 24 for webster, 200 for others. Warnings count longer ones,
            texts without a word, texts that stand under more than one label, and those that are in train too.
        at_least: how often training texts hold a word of the vocabulary; by default 5 for imdb, 2 for others.
        tokens: as in `vocabulary_of()`.

    Classes are in the order of their number of training texts, the largest first; for imdb positive, negative.

    Raises:
        ValueError: an unknown name or split, a column that is missing, a row without a label or with an open
            quotation mark, text that is not in `encoding`, a label without a training text, or a damaged file.
        FileNotFoundError: imdb is nowhere; the message says where it was looked for.
    """
    require(split in SPLITS, "split", repr(split), ", ".join(SPLITS))
    named = str(name) if name in ("webster", "imdb") else None
    if named is None:
        require(located(name).is_file(), "name", repr(str(name)), "webster, imdb, or the path of a CSV file")
        rows = _read_csv(located(name), text, label, encoding)
    else:
        rows = _read_webster() if named == "webster" else _read_imdb(tuple(roots_for(root)))
    require(split in rows.splits, "split", f"{split!r} of {rows.source}", ", ".join(rows.splits) + rows.why)
    (texts, labels), (known, trained) = rows.splits[split], rows.splits["train"]
    sizes = Counter(trained)
    names = ("pos", "neg") if named == "imdb" else sorted(sizes, key=lambda each: (-sizes[each], each))
    if unseen := sorted(set(labels) - sizes.keys()):
        raise ValueError(f"{rows.source}: no training text with the label {', '.join(map(repr, unseen))} of {split}")
    length = READ_UP_TO.get(str(named), 200) if length is None else length
    at_least = AT_LEAST.get(str(named), 2) if at_least is None else at_least
    if named is None:
        there = set(labels)
        if lacking := [each for each in names if each not in there]:
            seen = f"no text of {split} has the label {', '.join(map(repr, lacking))}"
            warnings.warn(f"{rows.source}: {seen}{rows.why}", stacklevel=2)
        if split != "train" and (again := sorted(set(texts) & set(known))):
            seen = f"{len(again)} texts of {split} are texts of train too, such as {again[0][:40]!r}"
            warnings.warn(f"{rows.source}: {seen}: accuracies on {split} are too good", stacklevel=2)
        _warn_of(rows.source, texts, labels, length, tokens)
    vocabulary = vocabulary_of(known, at_least=at_least, length=length, tokens=tokens)
    number = {each: i for i, each in enumerate(names)}
    shown = tuple({"pos": "positive", "neg": "negative"}.get(each, each) if named == "imdb" else each for each in names)
    numbers = torch.tensor([number[each] for each in labels], dtype=torch.int64)
    return LabeledTexts(encode(texts, vocabulary, length, tokens=tokens), numbers, shown, vocabulary)


def _warn_of(source: str, texts: list[str], labels: list[str], length: int, tokens: Tokens) -> None:
    labels_of = Counter(each for each, _ in set(zip(texts, labels, strict=True)))
    if several := sorted(each for each, number in labels_of.items() if number > 1):
        seen = f"{len(several)} texts stand under more than one label, such as {several[0][:40]!r}"
        warnings.warn(f"{source}: {seen}", stacklevel=3)
    sizes = [sum(1 for _ in islice(tokens(each), length + 1)) for each in texts]
    if empty := sizes.count(0):
        warnings.warn(f"{source}: {empty} texts have no word; each is read as one unknown word", stacklevel=3)
    if longer := sum(size > length for size in sizes):
        way = f"length={length}; a larger one reads more"
        warnings.warn(
            f"{source}: {longer} texts go on after {length} words and are read up to there ({way})", stacklevel=3
        )


@functools.lru_cache(maxsize=1)
def _read_webster() -> Rows:
    (folder,) = roots_for(None)[-1:]  # the course's own
    path, beside = folder / "webster.csv.gz", folder / "webster.sha256"
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there; it ships with the course: `git checkout -- data`")
    expected, found = beside.read_text().partition(" ")[0], hashlib.sha256(path.read_bytes()).hexdigest()
    seen = f"SHA-256 {found[:12]}...: damaged or altered"
    require(found == expected, str(path), seen, f"{expected[:12]}..., as `git checkout -- data` brings it")
    return _read_csv(path, "definition", "field", "utf-8")


@functools.lru_cache(maxsize=2)
def _read_imdb(roots: tuple[Path, ...]) -> Rows:
    folder = next((root / "aclImdb" for root in roots if (root / "aclImdb").is_dir()), None)
    if folder is None:
        looked = ", ".join(map(str, roots))
        raise FileNotFoundError(f"aclImdb/ is not in {looked}; unpack the Large Movie Review Dataset (Maas 2011) there")
    splits = {}
    for split in ("train", "test"):
        texts, labels = [], []
        for label in ("pos", "neg"):
            files = sorted((folder / split / label).glob("*.txt"))
            require(files, str(folder / split / label), "no review", "the unpacked archive, 12500 files *.txt")
            texts += [_decoded(file.read_bytes(), file, "utf-8").replace("<br />", " ") for file in files]
            labels += [label] * len(files)
        splits[split] = texts, labels
    return Rows(splits, "imdb")


def _decoded(raw: bytes, path: Path, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        allowed = f"text in {encoding}; name the encoding that it was saved in, such as encoding='cp1252' or 'utf-16'"
        raise ValueError(f"{path}: not readable as {encoding} at byte {error.start}; allowed: {allowed}") from error
    except (LookupError, ValueError, TypeError) as error:
        raise ValueError(f"encoding: got {encoding!r}; allowed: a name such as 'utf-8', 'cp1252', 'utf-16'") from error


def _read_csv(path: Path, text: str, label: str, encoding: str) -> Rows:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        raw = gzip.decompress(path.read_bytes()) if ".gz" in suffixes[-1:] else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); allowed: a CSV file, packed by gzip or not") from error
    rows = csv_rows(_decoded(raw, path, encoding), path, ".tsv" in suffixes)
    columns = rows.pop(0)[1] if rows else []
    for option, column in (("text", text), ("label", label)):
        require(column in columns, option, f"{column!r}, no column of {path.name}", ", ".join(columns) or "a header")
    read = [text, label, *(["split"] if "split" in columns else [])]
    twice = [column for column in read if columns.count(column) > 1]
    require(not twice, f"{path.name}, header", f"several columns {', '.join(map(repr, twice))}", "one of each name")
    require(rows, path.name, "no row", "a text and a label in each row")
    at = [columns.index(column) for column in read]
    for line, row in rows:
        fits = max(at) < len(row) <= len(columns) and row[at[1]].strip()
        require(fits, f"{path.name}, line {line}", "too few or too many values, or no label", ", ".join(columns))
    texts, labels = [row[at[0]] for _, row in rows], [row[at[1]].strip() for _, row in rows]
    if "split" in columns:
        said, why = [row[at[2]].strip().lower() for _, row in rows], ""
        places = [CALLED.get(each, each) for each in said]
    else:
        places = _dealt(texts, labels)
        why = " (without a column split, a label needs 4 different texts for one of test, 7 for one of validation)"
    odd = sorted(set(places) - set(SPLITS))
    require(not odd, f"{path.name}, column split", ", ".join(map(repr, odd)), ", ".join(SPLITS))
    require("train" in places, f"{path.name}, column split", "no row for train", ", ".join(SPLITS))
    chosen = {split: [i for i, place in enumerate(places) if place == split] for split in SPLITS if split in places}
    splits = {split: ([texts[i] for i in own], [labels[i] for i in own]) for split, own in chosen.items()}
    return Rows(splits, path.name, why)


def _dealt(texts: list[str], labels: list[str]) -> list[str]:
    """The split of each text where a file names none; a text that is there twice goes where it went first."""
    place: dict[str, str] = {}
    for label in sorted(set(labels)):
        mine = {text for text, own in zip(texts, labels, strict=True) if own == label} - place.keys()
        ordered = sorted(mine, key=lambda text: hashlib.sha256(text.encode()).digest())
        tests, validations = len(ordered) // 4, len(ordered) * 15 // 100
        for i, text in enumerate(ordered):
            place[text] = "test" if i < tests else "validation" if i < tests + validations else "train"
    return [place[text] for text in texts]
