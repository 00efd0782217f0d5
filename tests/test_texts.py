"""Texts: tokens, vocabulary, the two networks (padding, packing), the sources, bad input, and the methods on them."""

import csv
import gzip
import hashlib
import io
import sys
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from course_utils import texts
from course_utils.data import hold_out, long_tailed
from course_utils.experiments import two_classes
from course_utils.experiments.command import main
from course_utils.experiments.reports import write_report
from course_utils.experiments.runs import run_study
from course_utils.experiments.studies import STUDIES, run_cell
from course_utils.experiments.study_data import load_splits
from course_utils.experiments.two_classes import two_cell
from course_utils.methods import METHODS, train_method, train_methods
from course_utils.texts import (
    PADDING,
    UNKNOWN,
    BagOfWords,
    BiLSTM,
    LabeledTexts,
    backward_places,
    encode,
    known_words,
    load_texts,
    pooled,
    vocabulary_of,
    word_dropout,
    words,
)
from course_utils.training import fit, predict

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))
build_webster = pytest.importorskip("build_webster")

pytestmark = pytest.mark.usefixtures("one_thread")


def some_texts(lengths=(5, 1, 9, 3), size=30, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), width, dtype=torch.int16)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, size, (length,), generator=generator)
    return tokens


def made(network=BiLSTM, classes=3, seed=0, **options):
    torch.manual_seed(seed)
    model = network(classes, vocabulary=30, **options)
    with torch.no_grad():  # so that something happens, and the row of the padding is not 0
        model.backbone.embedding.weight.normal_()
    return model.eval()


# ---- from a text to numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Earth's crust, 12 km.", ["the", "earth's", "crust", "12", "km"]),
        ("'Tis rock'n'roll--so!", ["tis", "rock'n'roll", "so"]),
        ("na\u00efve na\u0069\u0308ve \ufb01sh", ["na\u00efve", "na\u00efve", "fish"]),
        ("\uc7a5\uae34 \uaf2c\ub9ac", ["\uc7a5\uae34", "\uaf2c\ub9ac"]),
        ("\u957f\u5c3e\u5206\u5e03 long", ["\u957f", "\u5c3e", "\u5206", "\u5e03", "long"]),
        ("snake_case \U0001f600 x2", ["snake", "case", "x", "2"]),
        (" \t...", []),
    ],
)
def test_words_of_a_text(text, found):
    assert list(words(text)) == found


def test_the_vocabulary_counts_what_is_read_of_training_texts():
    seen = ["a b b", "b a c", "c d e f g"]
    assert vocabulary_of(seen) == ("", "?", "b", "a", "c")
    assert vocabulary_of(seen, at_least=3) == ("", "?", "b")
    assert vocabulary_of(seen, length=1, at_least=1) == ("", "?", "a", "b", "c")
    assert vocabulary_of(seen, tokens=list, at_least=3)[:3] == ("", "?", " ")  # a tokenizer of one's own: signs
    with pytest.raises(ValueError, match="at_least: got 0; allowed: at least 1"):
        vocabulary_of(seen, at_least=0)


def test_encoding():
    vocabulary = ("", "?", "b", "a")
    found = encode(["a b zebra", "", "x", "b a b a b"], vocabulary, 4)
    assert found.tolist() == [[3, 2, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [2, 3, 2, 3]] and found.dtype == torch.int16
    assert encode(["a"], [*vocabulary, *map(str, range(2**15))], 2).dtype == torch.int32
    assert encode(["ab"], vocabulary, 3, tokens=list).tolist() == [[3, 2, 0]]
    long = "a " * 500_000  # a million signs: only what is read is looked at
    assert encode([long], vocabulary, 3).tolist() == [[3, 3, 3]]
    for arguments, message in ((("a b", vocabulary, 2), "texts: got one string"), ((["a"], vocabulary, 0), "length")):
        with pytest.raises(ValueError, match=message):
            encode(*arguments)


def test_labeled_texts_know_what_they_hold():
    tokens = some_texts()
    data = LabeledTexts(tokens, torch.tensor([0, 1, 1, 0]), ("x", "y"), tuple("vocabulary of 30 words in it!!"))
    assert repr(data) == "LabeledTexts(4 texts of up to 12 words, 30 of them known, 2 classes, on cpu)"
    assert data.subset(torch.tensor([2])).text(0) == " ".join(data.vocabulary[i] for i in tokens[2][:9])
    other = LabeledTexts(tokens, data.labels, data.class_names, data.vocabulary[::-1])
    assert data.digest() != other.digest() and data.digest() == data.to("cpu").digest()
    assert data.augmentation is None


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[1, 2]]), r"tokens: got torch.int64 of shape \(1, 2\); allowed: int16 or int32"),
        (torch.tensor([[1, 9]], dtype=torch.int16), "tokens: got 1 to 9; allowed: 0 to 3"),
        (torch.tensor([[0, 1]], dtype=torch.int16), "tokens: got 0 before or between words"),
        (torch.tensor([[1, 0, 2]], dtype=torch.int32), "tokens: got 0 before or between words"),
        (torch.tensor([[0, 0]], dtype=torch.int16), "tokens: got 0 before"),
    ],
)
def test_wrong_tokens_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        LabeledTexts(tokens, torch.tensor([0]), ("x",), ("", "?", "a", "b"))


def test_known_words_are_those_of_the_training_texts():
    vocabulary = ("", "?", "a", "b", "c", "d")
    train, test = (
        LabeledTexts(torch.tensor(tokens, dtype=torch.int16), torch.tensor([0, 1]), ("x", "y"), vocabulary)
        for tokens in ([[2, 4, 4], [4, 2, 1]], [[3, 2, 0], [5, 4, 4]])
    )
    small, read = known_words(train, test)
    assert small.vocabulary == read.vocabulary == ("", "?", "a", "c")
    assert small.tokens.tolist() == [[2, 3, 3], [3, 2, 1]] and read.tokens.tolist() == [[1, 2, 0], [1, 3, 3]]
    assert [data.text(0) for data in (small, read)] == ["a c c", "? a"]
    assert known_words(train, at_least=3)[0].vocabulary == ("", "?", "c")
    with pytest.raises(ValueError, match="others: got texts with another vocabulary"):
        known_words(train, small)


def test_word_dropout_hides_words_and_no_padding():
    tokens = some_texts([12] * 400 + [3] * 100)
    hidden = word_dropout(tokens, torch.Generator().manual_seed(0), share=0.3)
    words_there = tokens > UNKNOWN
    share = (hidden[words_there] == UNKNOWN).float().mean().item()
    assert abs(share - 0.3) < 0.02
    assert torch.equal(hidden == PADDING, tokens == PADDING) and hidden.dtype == tokens.dtype
    assert torch.equal(hidden[hidden > UNKNOWN], tokens[hidden > UNKNOWN])
    assert torch.equal(hidden, word_dropout(tokens, torch.Generator().manual_seed(0), share=0.3))
    assert torch.equal(tokens, word_dropout(tokens, torch.Generator(), share=0.0))
    with pytest.raises(ValueError, match=r"share: got 1\.5; allowed: 0 to 1"):
        word_dropout(tokens, torch.Generator(), share=1.5)


# ---- the networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "options"), [(BiLSTM, {}), (BiLSTM, {"layers": 2}), (BagOfWords, {})])
def test_padding_changes_nothing(network, options):
    model, tokens = made(network, **options), some_texts()
    wide = torch.cat([tokens, torch.zeros(4, 20, dtype=torch.int16)], 1)
    with torch.no_grad():
        whole = model(wide)
        assert torch.allclose(model(tokens), whole, atol=1e-6, rtol=0)
        for i, length in enumerate((5, 1, 9, 3)):
            assert torch.allclose(model(tokens[i : i + 1, :length]), whole[i : i + 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("network", [BiLSTM, BagOfWords])
def test_the_order_of_a_batch_changes_nothing(network):
    lengths = torch.randint(1, 13, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    model, tokens = made(network), some_texts(lengths)
    data = LabeledTexts(tokens, torch.zeros(50, dtype=torch.int64), tuple("xyz"), tuple(map(str, range(30))))
    by_length = (tokens != PADDING).sum(1).argsort()
    whole = predict(model, data, batch_size=50)
    assert torch.allclose(predict(model, data.subset(by_length), batch_size=7), whole[by_length], atol=1e-6, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_same_as_torch_with_packed_sequences(layers):
    model, tokens = made(layers=layers), some_texts()
    backbone, length = model.backbone, (tokens != PADDING).sum(1)
    both = nn.LSTM(64, 64, num_layers=layers, bidirectional=True, batch_first=True)
    for k, (ahead, back) in enumerate(zip(backbone.ahead, backbone.back, strict=True)):
        for name, weight in ahead.named_parameters():
            both.get_parameter(name.replace("l0", f"l{k}")).data.copy_(weight)
        for name, weight in back.named_parameters():
            both.get_parameter(name.replace("l0", f"l{k}_reverse")).data.copy_(weight)
    packed = pack_padded_sequence(backbone.embedding(tokens.long()), length, batch_first=True, enforce_sorted=False)
    x, _ = pad_packed_sequence(both(packed)[0], batch_first=True, padding_value=-torch.inf)
    assert torch.allclose(model.features(tokens), x.amax(1), atol=1e-6, rtol=0)


def test_words_read_backwards():
    tokens = some_texts()
    places = backward_places(tokens)
    assert places[0, :6].tolist() == [4, 3, 2, 1, 0, 5] and places[1, :3].tolist() == [0, 1, 2]
    turned = tokens.gather(1, places)
    assert torch.equal(turned.gather(1, places), tokens)
    assert turned[2, :9].tolist() == tokens[2, :9].tolist()[::-1] and not turned[2, 9:].any()


def test_pooling_looks_at_words_alone():
    x = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [100.0, 100.0]]])
    there = torch.tensor([[True, True, False]])
    assert pooled(x, there, "mean").tolist() == [[2.0, -3.0]] and pooled(x, there, "max").tolist() == [[3.0, -1.0]]
    with pytest.raises(ValueError, match="kind: got 'sum'; allowed: mean, max"):
        pooled(x, there, "sum")


def test_a_bag_does_not_know_the_order_and_a_bilstm_does():
    tokens = some_texts([12])
    other = tokens.flip(1)
    bag, lstm = made(BagOfWords), made(BiLSTM)
    assert torch.allclose(bag(tokens), bag(other), atol=1e-6)
    assert not torch.allclose(lstm(tokens), lstm(other), atol=1e-2)


def test_what_a_text_network_refuses():
    for images in (torch.zeros(2, 5), torch.zeros(5, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"tokens: got .*; allowed: integers of shape \(B, T\)"):
            made()(images)
    with pytest.raises(ValueError, match="layers: got 0"):
        BiLSTM(3, vocabulary=5, layers=0)


def test_word_vectors_start_small_and_the_padding_stays_at_zero():
    torch.manual_seed(0)
    weight = BagOfWords(3, vocabulary=2000).backbone.embedding.weight
    assert abs(weight[1:].std().item() - 0.1) < 0.01 and not weight[PADDING].any()


# ---- training and the methods ----------------------------------------------------------------------------------------


def toy(per_class=(60, 20, 6), seed=0):
    """Class j has words of its own among words of all classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(torch.tensor(per_class))
    tokens = torch.randint(2, 20, (len(labels), 8), generator=generator)
    tokens[:, 2] = 20 + 3 * labels + torch.randint(3, (len(labels),), generator=generator)
    lengths = torch.randint(3, 9, (len(labels), 1), generator=generator)
    tokens = tokens.masked_fill(torch.arange(8) >= lengths, 0).to(torch.int16)
    return LabeledTexts(tokens, labels, ("a", "b", "c"), tuple(map(str, range(30))))


ADAM = {"optimizer": torch.optim.Adam, "lr": 0.02, "weight_decay": 0.0}


@pytest.mark.parametrize("network", [BiLSTM, BagOfWords])
def test_both_networks_learn(network):
    model = network(3, vocabulary=30)
    history = fit(model, toy(), epochs=20, augment=partial(word_dropout, share=0.1), progress=False, **ADAM)
    right = (predict(model, toy(seed=1)).argmax(1) == toy(seed=1).labels).float().mean()
    assert history[-1]["loss"] < 0.5 * history[0]["loss"] and right > 0.8


def test_every_method_for_vectors_reads_texts():
    names = [name for name in METHODS if name != "OLTR memory"]
    rest, validation = hold_out(toy(), 0.2, seed=0)
    network = partial(BagOfWords, vocabulary=30, embedding=8, dropout=0.0)
    done = train_methods(names, rest, validation, network=network, epochs=5, augment=None, **ADAM)
    assert set(done) == set(names)
    said = {name: one.logits(validation) for name, one in done.items()}
    assert all(logits.shape == (len(validation), 3) and logits.isfinite().all() for logits in said.values())
    trained = [logits for name, logits in said.items() if METHODS[name].train]
    assert len({tuple(logits.flatten().tolist()) for logits in trained}) == len(trained)  # each does something


def test_a_checkpoint_goes_on_with_texts_and_adam(tmp_path):
    def trained(stops=()):
        torch.manual_seed(0)
        model = BagOfWords(3, vocabulary=30)

        def evaluate(_model):
            if stops and stops.pop():
                raise KeyboardInterrupt
            return {}

        more = {"augment": word_dropout, "evaluate": evaluate, "progress": False} | ADAM
        fit(model, toy(), epochs=3, checkpoint=tmp_path / f"{bool(stops)}.pt", **more)
        return model

    whole = trained()
    stops = [True, False]
    with pytest.raises(KeyboardInterrupt):
        trained(stops)
    stops.append(False)
    model = trained(stops)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


# ---- Webster ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def webster():
    with gzip.open(DATA / "webster.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_webster_is_the_file_that_was_built(webster):
    content = (DATA / "webster.csv.gz").read_bytes()
    assert (DATA / "webster.sha256").read_text().split() == [hashlib.sha256(content).hexdigest(), "webster.csv.gz"]
    assert len(content) < 1.2 * 2**20 and content[4:8] == b"\0\0\0\0"  # no time in it
    assert "GNU General Public License" in (DATA / "WEBSTER-COPYING.txt").read_text()


def test_webster_keeps_its_rules(webster):
    per = Counter((row["split"], row["field"]) for row in webster)
    fields = {row["field"] for row in webster}
    assert len(fields) == 45 and all(per["test", f] == 20 and per["validation", f] == 8 for f in fields)
    training = sorted(per["train", field] for field in fields)
    assert training[0] >= 6 and training[-1] > 5000
    heads = {
        split: {row["word"] for row in webster if row["split"] == split} for split in ("train", "validation", "test")
    }
    assert not heads["train"] & (heads["validation"] | heads["test"]) and not heads["validation"] & heads["test"]
    for row in webster:
        text = row["definition"]
        assert len(build_webster.words(text)) >= 5 and not build_webster.damaged(text), row
        assert not build_webster.DATED.search(text) and text.isascii(), row
    tests = [row["definition"] for row in webster if row["split"] == "test"]
    assert not list(build_webster.near_copies(tests))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A small, dry fruit. [Written also {akene} and {ach[ae]nium}.]\n", "A small, dry fruit."),
        ("A family ({Scarab[ae]id[ae]}) at 90[deg] and caf['e].", "A family (Scarabaeidae) at 90 degrees and cafe."),
        ("(a) Matter of pods. --Watts.\n   (b) A red powder.\n", "Matter of pods. A red powder."),
        ("The windpipe. See Illust. under {Lung}.\n", "The windpipe."),
        ('Clear. -- {Clear"ly}, adv. [Obs.]\n', "Clear."),
        ("Of an eye. -- n. The nerve of it.\n", "Of an eye. The nerve of it."),
        ("1. A plant; -- called also weed. Cf. {Herb}, 2.\n", "A plant; -- called also weed."),
        ("A bird. Note: It flies. Syn: fowl\n", "A bird."),
    ],
)
def test_cleaning(raw, clean):
    assert build_webster.clean(raw) == clean


def test_near_copies_and_splits():
    text = "a mineral of a green color found in small crystals"
    assert list(
        build_webster.near_copies([text, "the law of the sea and of ships", text + " in Saxony", "Text of law"])
    ) == [2]
    rows = [("big", f"word {i}", f"big text {i}") for i in range(60)] + [
        ("rare", f"word {i + 45}", f"rare {i}") for i in range(30)
    ]
    kept, left_out = build_webster.split(rows)
    per = Counter((row[0], row[1]) for row in kept)
    assert (per["test", "rare"], per["validation", "rare"], per["train", "rare"]) == (20, 8, 2)
    assert len(kept) + left_out == 90 and build_webster.split(rows[::-1])[1] == left_out
    taken = {row[2] for row in kept if row[0] != "train"}
    assert not taken & {row[2] for row in kept if row[0] == "train"}


def test_loading_webster():
    train, validation, test = (load_texts("webster", split) for split in ("train", "validation", "test"))
    counts = train.counts.tolist()
    assert counts == sorted(counts, reverse=True) and train.class_names[0] == "zoology"
    assert train.vocabulary == validation.vocabulary == test.vocabulary
    assert train.class_names == validation.class_names == test.class_names
    assert test.counts.unique().tolist() == [20] and validation.counts.unique().tolist() == [8]
    assert train.tokens.shape[1] == 24 and train.tokens.unique().tolist() == list(range(len(train.vocabulary)))
    small, read = known_words(long_tailed(train, [max(1, n // 50) for n in counts], seed=0), test)
    assert set(small.vocabulary) < set(train.vocabulary) and read.tokens.max() < len(small.vocabulary)


def test_a_damaged_webster_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "roots_for", lambda root: [tmp_path])
    texts._read_webster.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"webster.csv.gz is not there; it ships with the course"):
        load_texts("webster", "train")
    (tmp_path / "webster.csv.gz").write_bytes((DATA / "webster.csv.gz").read_bytes()[:-9])
    (tmp_path / "webster.sha256").write_text((DATA / "webster.sha256").read_text())
    with pytest.raises(ValueError, match=r"webster.csv.gz: got SHA-256 .* damaged or altered"):
        load_texts("webster", "train")
    texts._read_webster.cache_clear()


# ---- files of one's own ----------------------------------------------------------------------------------------------


def written(folder, rows, name="mine.csv", encoding="utf-8", delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    raw = text.getvalue().encode(encoding)
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder / name


SPAM, HAM = [[[f"{kind} number {i}", kind] for i in range(n)] for kind, n in (("spam", 20), ("ham", 40))]
ROWS = [["text", "label"], *SPAM, *HAM]


@pytest.mark.parametrize(
    ("name", "encoding", "delimiter"),
    [("a.csv", "utf-8", ","), ("a.csv", "utf-8-sig", ","), ("a.tsv", "utf-8", "\t"), ("a.csv.gz", "utf-8", ",")],
)
def test_a_csv_file(tmp_path, name, encoding, delimiter):
    path = written(tmp_path, ROWS, name, encoding, delimiter)
    parts = {split: load_texts(path, split) for split in ("train", "validation", "test")}
    assert {split: part.counts.tolist() for split, part in parts.items()} == {
        "train": [24, 12],
        "validation": [6, 3],
        "test": [10, 5],
    }
    assert parts["train"].class_names == ("ham", "spam") and "spam" in parts["test"].vocabulary
    assert torch.equal(parts["test"].tokens, load_texts(path, "test").tokens)  # the same for everybody


def test_the_same_text_is_never_in_two_splits_of_a_file(tmp_path):
    path = written(tmp_path, [ROWS[0], *ROWS[1:], *ROWS[1:]])
    parts = [load_texts(path, split, at_least=1) for split in ("train", "validation", "test")]
    seen = [{part.text(i) for i in range(len(part))} for part in parts]
    # numbers that training lacks are "?" in the others, so look at those that all of them know
    assert sum(map(len, parts)) == 120
    assert not seen[0] & {text for text in seen[1] | seen[2] if "?" not in text}


def test_columns_and_splits_of_a_file(tmp_path):
    rows = [["body", "kind", "split"], ["one two", "x", "train"], ["two one", "y", "train"], ["one", "y", "TEST"]]
    rows += [["two", "x", "test"]]
    data = load_texts(written(tmp_path, rows), "test", text="body", label="kind", at_least=1)
    assert data.text(0) == "one" and data.class_names == ("x", "y") and data.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"split: got 'validation' of mine\.csv; allowed: train, test"):
        load_texts(tmp_path / "mine.csv", "validation", text="body", label="kind")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"text": "body"}, "text: got 'body', no column of mine.csv; allowed: text, label"),
        (ROWS, {"label": "kind"}, "label: got 'kind', no column of mine.csv; allowed: text, label"),
        ([["text", "label"]], {}, "mine.csv: got no row"),
        ([], {}, "text: got 'text', no column of mine.csv; allowed: a header"),
        ([*ROWS, ["no label", " "]], {}, "mine.csv, line 62: got too few or too many values, or no label"),
        ([*ROWS, ["alone"]], {}, "mine.csv, line 62: got too few"),
        (
            [["text", "label", "split"], ["a", "x", "train"], ["b", "y", "test"]],
            {},
            "mine.csv: no training text with the label 'y' of test",
        ),
        (
            [["text", "label", "split"], ["a", "x", "train"], ["b", "x", "later"]],
            {},
            "column split: got 'later'; allowed: train, validation, test",
        ),
        ([["text", "label", "split"], ["a", "x", "test"]], {}, "column split: got no row for train"),
        ([["text", "label", "split"], ["a", "x", "train"], ["b", "x"]], {}, "mine.csv, line 3: got too few"),
        ([*ROWS, ["a", "spam", "more"]], {}, "mine.csv, line 62: got too few or too many"),
        ([["text", "label", "text"], ["a", "x", "b"]], {}, "mine.csv, header: got several columns 'text'; allowed"),
        ([["text", "label", "split", "split"]], {}, "mine.csv, header: got several columns 'split'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_texts(written(tmp_path, rows), "test", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mark", "said"),
    [
        ("a.csv", ";", "a.csv: got semicolons in its first line; allowed: commas "),
        ("a.csv", "\t", "a.csv: got tabs in its first line; allowed: commas"),
        ("a.tsv", ",", "a.tsv: got commas in its first line; allowed: tabs"),
    ],
)
def test_another_mark_between_the_values_is_named(tmp_path, name, mark, said):
    """Spreadsheets write semicolons where the comma is a decimal mark; a quoted text made another message of it."""
    rows = mark.join(("text", "label")) + "\n" + mark.join(('"a text, with ""marks"""', "x")) + "\n"
    (tmp_path / name).write_text(rows, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load_texts(tmp_path / name, "train")


def test_texts_that_spoil_the_numbers_are_told(tmp_path):
    """The same text under two labels, and in two splits where a column of the file says so."""
    rows = [
        ("text", "label", "split"),
        ("the sea", "a", "train"),
        ("the hill", "b", "train"),
        ("the sea", "b", "train"),
    ]
    path = written(tmp_path, [*rows, ("the hill", "b", "test"), ("the wind", "a", "test")])
    with pytest.warns(UserWarning, match="1 texts stand under more than one label, such as 'the sea'"):
        load_texts(path, "train", at_least=1)
    with pytest.warns(UserWarning, match="1 texts of test are texts of train too, such as 'the hill': accuracies on"):
        load_texts(path, "test", at_least=1)


def test_other_encodings(tmp_path):
    rows = [ROWS[0], *[[f"caf\u00e9 {i}", "x"] for i in range(9)]]
    path = written(tmp_path, rows, encoding="cp1252")
    with pytest.raises(ValueError, match=r"mine.csv: not readable as utf-8-sig at byte 15; .*encoding='cp1252'"):
        load_texts(path, "train")
    assert "caf\u00e9" in load_texts(path, "train", encoding="cp1252").vocabulary
    assert "caf\u00e9" in load_texts(written(tmp_path, rows, encoding="utf-16"), "train", encoding="utf-16").vocabulary
    with pytest.raises(ValueError, match="encoding: got 'utf-9'; allowed: a name such as 'utf-8'"):
        load_texts(path, "train", encoding="utf-9")
    with pytest.raises(ValueError, match=r"encoding: got '\\x00'; allowed: a name"):
        load_texts(path, "train", encoding="\0")


def test_texts_without_words_and_long_ones_are_counted_and_kept(tmp_path):
    splits = [["text", "label", "split"], ["one two", "x", "train"], ["one two", "x", "train"]]
    odd = [["", "x", "test"], ["...", "x", "test"], ["zebra", "x", "test"], ["one " * 250_000, "x", "test"]]
    path = written(tmp_path, splits + odd)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_texts(path, "test", length=5)
    said = sorted(str(w.message) for w in caught)
    assert len(said) == 2 and "1 texts go on after 5 words" in said[0] and "2 texts have no word" in said[1]
    assert [data.text(i) for i in range(4)] == ["?", "?", "?", "one one one one one"]


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"name: got 'nowhere\.csv'; allowed: webster, imdb, or the path"):
        load_texts("nowhere.csv", "train")
    with pytest.raises(ValueError, match="split: got 'all'; allowed: train, validation, test"):
        load_texts("webster", "all")
    (tmp_path / "a.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"a.csv.gz is damaged"):
        load_texts(tmp_path / "a.csv.gz", "train")
    packed = bytearray(gzip.compress(b"text,label\n" + bytes(range(256))))
    packed[20:30] = b"\xff" * 10
    (tmp_path / "a.csv.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"a.csv.gz is damaged"):
        load_texts(tmp_path / "a.csv.gz", "train")
    (tmp_path / "b.csv").write_text('text,label\na,x\n\n"open,x\n')
    with pytest.raises(ValueError, match=r"b.csv, line 4: got .*; allowed: rows of comma-separated values"):
        load_texts(tmp_path / "b.csv", "train")


def test_a_quotation_mark_in_a_tsv_takes_no_rows_away(tmp_path):
    lines = ["text\tlabel", "plain\tx", '"bye\tx', "plain row\ty", 'end"\tx', "plain row\tx"]
    path = tmp_path / "a.tsv"
    for rest in (lines[2:], ['"never closed\tx'], ['"shut" too early\tx']):
        path.write_text("\n".join([*lines[:2], *rest]))
        with pytest.raises(ValueError, match=r"a.tsv, line 3: got .*; allowed: rows of tab-separated values; one that"):
            load_texts(path, "train")
    path.write_text('text\tlabel\nshe said "yes"\tx\n"a ""b"" c"\tx\n\na "\tx\n')
    data = load_texts(path, "train", at_least=1)
    assert sorted(data.text(i) for i in range(3)) == ["a", "a b c", "she said yes"]
    two_lines = written(tmp_path, [["text", "label"], ["one\ntwo", "x"]])  # in a CSV file that is allowed
    assert load_texts(two_lines, "train", at_least=1).text(0) == "one two"


@pytest.mark.parametrize("name", ["A.CSV.GZ", "a.Tsv", "a.TSV.gz"])
def test_suffixes_in_capitals_and_other_names_of_splits(tmp_path, name):
    kinds = ["train", "Training", "val", "VALID", "validation", "test", "testing"]
    rows = [["split", "text", "label"], *[[kind, "one", "x"] for kind in kinds]]
    tabs = "\t" if "tsv" in name.lower() else ","
    path = written(tmp_path, rows, name, delimiter=tabs)
    if name.endswith(".GZ"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert [len(load_texts(path, split)) for split in ("train", "validation", "test")] == [2, 3, 2]


def test_labels_without_a_text_of_a_split_are_named_once(tmp_path):
    numbers = {"a": 200, "b": 60, "c": 12, "d": 3}
    rows = [[f"{label} number {i}", label] for label, n in numbers.items() for i in range(n)]
    path = written(tmp_path, [["text", "label"], *rows])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_texts(path, "train").counts.tolist() == [120, 36, 8, 3]
    for split, counts in (("test", [50, 15, 3, 0]), ("validation", [30, 9, 1, 0])):
        with pytest.warns(UserWarning, match=f"no text of {split} has the label 'd' .*needs 4 different") as told:
            assert load_texts(path, split).counts.tolist() == counts
        assert len(told) == 1 and told[0].filename == __file__
    few = written(tmp_path, [["text", "label"], *rows[-3:]])
    with pytest.raises(ValueError, match=r"split: got 'test' of mine.csv; allowed: train \(.* needs 4 different texts"):
        load_texts(few, "test")
    rows = [["text", "label", "split"], ["a", "x", "train"], ["b", "y", "train"], ["a", "x", "test"]]
    with pytest.warns(UserWarning, match="mine.csv: no text of test has the label 'y'$"):
        load_texts(written(tmp_path, rows), "test")


def test_imdb_as_it_is_unpacked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"aclImdb/ is not in .*; unpack the Large Movie Review Dataset"):
        load_texts("imdb", "train", root=tmp_path)
    for split, label, text in [
        (s, k, f"a {k} film<br /><br />indeed") for s in ("train", "test") for k in ("pos", "neg")
    ]:
        folder = tmp_path / "aclImdb" / split / label
        folder.mkdir(parents=True)
        for i in range(6):
            (folder / f"{i}_7.txt").write_text(text, encoding="utf-8")
    texts._read_imdb.cache_clear()
    train, test = (load_texts("imdb", split, root=tmp_path) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("positive", "negative") and train.counts.tolist() == [6, 6]
    assert train.text(0) == "a pos film indeed" and test.text(11) == "a neg film indeed"
    with pytest.raises(ValueError, match="split: got 'validation' of imdb; allowed: train, test"):
        load_texts("imdb", "validation", root=tmp_path)


# ---- studies of texts ------------------------------------------------------------------------------------------------


def test_the_study_keeps_a_share_of_the_tail_and_its_words():
    settings = STUDIES["webster"].settings()
    train, validation, test, note = load_splits(settings, 3)
    whole = load_texts("webster", "train").counts.tolist()
    assert train.counts.tolist() == [max(1, round(n * settings["max_count"] / whole[0])) for n in whole]
    assert train.vocabulary == validation.vocabulary == test.vocabulary and note == "webster"
    assert (torch.bincount(train.tokens.flatten().long())[2:] >= 2).all()
    assert "optimizer" in settings and "optimizer" not in STUDIES["letters"].settings()


def test_a_cell_of_texts(tmp_path):
    methods = ("cross-entropy", "tau-normalization")
    study = replace(STUDIES["webster-bag"], epochs=1, max_count=90, methods=methods, seeds=(0,))
    (cell,) = run_study("webster-bag", study, tmp_path / "out", jobs=1)
    assert len(cell["data"]["counts"]) == 45 and max(cell["data"]["counts"]) == 90
    assert cell["settings"]["images"]["train"].startswith("22470 tokens of 24, 45 classes, ")
    report = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "training texts of 45 classes" in report and "image" not in report.replace("backbone images", "")
    with pytest.raises(ValueError, match="network: got 'SmallCNN'; allowed: bag of words, BiLSTM"):
        run_cell(study.settings() | {"network": "SmallCNN"}, "cross-entropy", ["cross-entropy"], 0)
    with pytest.raises(ValueError, match="optimizer: got 'adam'; allowed: SGD, Adam"):
        run_cell(study.settings() | {"optimizer": "adam"}, "cross-entropy", ["cross-entropy"], 0)


def test_two_classes_one_of_them_rare(monkeypatch):
    seen = []

    def look(method, train, **options):
        seen.append((method, train))
        return train_method(method, train, **options)

    monkeypatch.setattr(two_classes, "train_method", look)
    monkeypatch.setitem(two_classes.TRAINING, "epochs", 1)
    monkeypatch.setitem(two_classes.TRAINING, "network", "bag of words")
    cells = {method: two_cell("medicine, anatomy", method, 0) for method in ("re-weighting", "balanced data")}
    assert [(method, train.counts.tolist()) for method, train in seen] == [
        ("re-weighting", [900, 90]),
        ("cross-entropy", [495, 495]),
    ]
    for cell in cells.values():
        assert cell["mean"] == pytest.approx((cell["frequent"] + cell["rare"]) / 2) and 0 <= cell["validation"] <= 1
    assert cells == {method: two_cell("medicine, anatomy", method, 0) for method in cells}


def test_the_table_of_two_classes_is_laid_out_as_the_paper_has_it():
    rows = [
        {
            "pair": "a, b",
            "method": m,
            "seed": s,
            "frequent": 0.01 + s / 100,
            "rare": r,
            "mean": (0.01 + s / 100 + r) / 2,
        }
        for m, r in (("LDAM + DRW", 0.3), ("cross-entropy", 0.5))
        for s in range(3)
    ]
    text = two_classes.two_text({"study": "webster-two", "torch": "2", "rows": rows, "choices": []})
    lines = [line for line in text.splitlines() if line.startswith(("cross-entropy", "LDAM + DRW"))]
    assert lines[0].split() == "cross-entropy 2.0 ± 1.0 50.0 ± 0.0 26.0 ± 0.5".split()
    assert lines[1].startswith("LDAM + DRW") and lines[1].endswith("-10.0 [-10.0, -10.0]")
    assert lines[2].split() == "cross-entropy 2.86 70.78 36.82 ERM".split()  # Cao et al. 2019, table 1
    assert lines[3].split() == "LDAM + DRW 4.91 30.77 17.84 LDAM-DRW".split()


def test_reviews_that_are_not_there_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert main(["experiments", "run", "imdb", "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: aclImdb/ is not in ") and said.count("\n") == 1
