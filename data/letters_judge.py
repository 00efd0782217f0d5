"""Letters, step 2: choose faces, cluster look-alike families, measure legibility, split. Slow; its result is committed.

Every rule works on a face by a mechanical property of its glyphs, or on a whole family; no single glyph is ever
dropped because a classifier got it wrong.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from letters_fonts import CAPITALS, CHARACTERS, DIGITS, TEX_PACKAGE, Face
from scipy.spatial.distance import cdist
from torch import nn

KEPT = "kept"
FACES_PER_FAMILY, FACES_PER_CLUSTER = 4, 24
LARGE_DESIGNERS = {"fonts-aenigma": 2}  # package of one very productive designer -> keep every n-th family
LOOK_ALIKE, SAME_DRAWING = 12.0, 4.0  # root mean square grey differences, of 255
COMPARED = [CHARACTERS.index(letter) for letter in "AEGQR"]
LEGIBLE = 0.50  # a family stays when more than this share of its capitals is read
SPLIT_ENDS = (("train", 0.60), ("validation", 0.75), ("test", 1.0))
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill an interval evenly
OTHER_SCRIPT = re.compile(r"grk$|greek|symbol|dingbat|ornament", re.I)  # a family that says itself it is not Latin
# First words that name a foundry, a project or a common word: the second word is needed to tell designs apart.
MIXED_FOLDERS = {"qualitype"}  # TeX folders that hold many unrelated designs
SHARED_WORDS = set("adf ae bm bpg el gfs gnu il im khmer la le libre ms new old pt px qt saint tex the un".split())


def choose_faces(faces: list[Face]) -> list[Face]:
    """At most four files of a family: upright regular, upright bold, italic, upright light, then extreme weights."""
    slots = (
        (400, lambda face: not face.italic and 300 < face.weight < 600),
        (700, lambda face: not face.italic and face.weight >= 600),
        (400, lambda face: face.italic),
        (300, lambda face: not face.italic and face.weight <= 300),
    )
    chosen: list[Face] = []
    for target, fits in slots:
        pool = [face for face in faces if fits(face) and face not in chosen]
        if pool:
            distance = {face: (abs(face.width - 5), abs(face.weight - target), face.style, face.path) for face in pool}
            chosen.append(min(pool, key=distance.__getitem__))
    rest = sorted((face for face in faces if face not in chosen), key=lambda face: (-abs(face.weight - 400), face.path))
    return (chosen + rest)[:FACES_PER_FAMILY]


def group_families(faces: Iterable[Face]) -> dict[str, list[Face]]:
    """Family name -> its faces in one package only: a fonts-* package if there is one, else the TeX collection."""
    groups: dict[str, list[Face]] = defaultdict(list)
    for face in faces:
        groups[face.family.casefold()].append(face)
    families = {}
    for members in groups.values():
        package = min((face.package == TEX_PACKAGE, face.package) for face in members)[1]
        members = [face for face in members if face.package == package]
        families[members[0].family] = [replace(face, family=members[0].family) for face in members]
    return dict(sorted(families.items(), key=lambda item: item[0].casefold()))


def subsample_large_designers(families: dict[str, list[Face]]) -> set[str]:
    """Names of the families left out so that one designer does not dominate: all but every n-th, by name."""
    dropped = set()
    for package, step in LARGE_DESIGNERS.items():
        names = [name for name, faces in families.items() if faces[0].package == package]
        dropped |= set(names) - set(names[::step])
    return dropped


def face_fault(glyphs: np.ndarray) -> str:
    """Why a face's (36, 28, 28) glyphs cannot be used, or ''."""
    flat = glyphs.reshape(len(glyphs), -1)
    if ((flat > 0).sum(1) < 8).any() or (flat.max(1) < 34).any():
        return "blank glyph"
    pictures = [glyph.tobytes() for glyph in glyphs]
    if len(set(pictures[CAPITALS])) < 26 or len(set(pictures[DIGITS])) < 10:
        return "two capitals or two digits share one drawing"
    if set(pictures[CAPITALS]) & set(pictures[DIGITS]):
        return "a digit is drawn as a capital"
    return ""


def rms_distances(glyphs: np.ndarray, which: list[int] | slice) -> np.ndarray:
    """(faces, faces) root mean square grey difference over the chosen characters."""
    flat = glyphs[:, which].reshape(len(glyphs), -1).astype(np.float32)
    return cdist(flat, flat) / np.sqrt(flat.shape[1])


def repeated_faces(glyphs: np.ndarray) -> np.ndarray:
    """True for a face whose capitals are, within SAME_DRAWING, those of an earlier face that stays."""
    close = rms_distances(glyphs, CAPITALS) < SAME_DRAWING
    repeated = np.zeros(len(glyphs), bool)
    for index in range(len(glyphs)):
        repeated[index] = (close[index, :index] & ~repeated[:index]).any()
    return repeated


def cluster_key(face: Face) -> str:
    """What a family shares with its relatives: its folder in the TeX collection, else the first word of its name."""
    folder = face.path.rsplit("/", 2)[-2]
    if face.package == TEX_PACKAGE and folder not in MIXED_FOLDERS:
        return folder
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=^QT)", " ", face.family)
    words = re.findall(r"[^\W\d_]+", spaced.casefold())
    if len("".join(words)) < 2:  # nothing but digits, or one letter and digits: C059
        return face.family.casefold()
    return " ".join(words[: 2 if len(words[0]) == 1 or words[0] in SHARED_WORDS else 1])


def cluster_families(faces: list[Face], family_of: np.ndarray, glyphs: np.ndarray) -> np.ndarray:
    """Cluster label per family: same `cluster_key`, or two faces with near-identical A, E, G, Q, R (transitively)."""
    parent = list(range(family_of.max() + 1))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first_with: dict[str, int] = {}
    for index, face in zip(family_of, faces, strict=True):
        parent[root(index)] = root(first_with.setdefault(cluster_key(face), index))
    for a, b in np.argwhere(np.triu(rms_distances(glyphs, COMPARED) < LOOK_ALIKE, 1)):
        parent[root(family_of[a])] = root(family_of[b])
    roots = [root(index) for index in range(len(parent))]
    number = {label: position for position, label in enumerate(dict.fromkeys(roots))}
    return np.array([number[label] for label in roots])


def small_cnn() -> nn.Module:
    """Three convolutions 16-32-64 with batch normalisation, global mean, one linear layer."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if after < 64 else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 26)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def as_input(pictures: np.ndarray) -> torch.Tensor:
    """(n, 28, 28) uint8 -> (n, 1, 28, 28) float in 0..1."""
    return torch.from_numpy(pictures.astype(np.float32) / 255)[:, None]


def squeezed(images: torch.Tensor) -> torch.Tensor:
    """A batch drawn narrower or flatter by up to 40 %, centred: typefaces differ most in their proportions."""
    size = [28, 28]
    size[int(torch.randint(0, 2, ()))] = int(torch.randint(17, 29, ()))
    top, left = (28 - size[0]) // 2, (28 - size[1]) // 2
    small = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    return nn.functional.pad(small, (left, 28 - size[1] - left, top, 28 - size[0] - top))


def train_reader(pictures: np.ndarray, labels: np.ndarray, epochs: int, seed: int, squeeze: bool = False) -> nn.Module:
    """A small CNN trained on (n, 28, 28) uint8 capitals: SGD 0.1, cosine schedule, random 2-pixel shifts."""
    torch.manual_seed(seed)
    model, batch = small_cnn().train(), 64
    images, targets = as_input(pictures), torch.from_numpy(labels.astype(np.int64))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch):
            if len(rows) < batch:
                continue
            padded = nn.functional.pad(squeezed(images[rows]) if squeeze else images[rows], (2, 2, 2, 2))
            down, right = torch.randint(0, 5, (2,)).tolist()
            shifted = padded[..., down : down + 28, right : right + 28]
            loss = nn.functional.cross_entropy(model(shifted), targets[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def read(model: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Predicted class of each (n, 28, 28) picture."""
    with torch.inference_mode():
        return torch.cat([model(part).argmax(1) for part in as_input(pictures).split(512)]).numpy()


def legibility(glyphs: np.ndarray, cluster: np.ndarray, trusted: np.ndarray, folds: int = 4, epochs: int = 8):
    """(faces,) share of a face's capitals read by a CNN that never saw its cluster; trained on `trusted` faces only."""
    capitals = glyphs[:, CAPITALS]
    order = np.argsort([hashlib.sha256(f"fold {c}".encode()).hexdigest() for c in range(cluster.max() + 1)])
    fold = np.empty(len(order), int)
    fold[order] = np.arange(len(order)) % folds
    score = np.zeros(len(glyphs))
    for k in range(folds):
        seen, unseen = trusted & (fold[cluster] != k), np.flatnonzero(fold[cluster] == k)
        labels = np.tile(np.arange(26), seen.sum())
        model = train_reader(capitals[seen].reshape(-1, 28, 28), labels, epochs, seed=k, squeeze=True)
        guess = read(model, capitals[unseen].reshape(-1, 28, 28)).reshape(-1, 26)
        score[unseen] = (guess == np.arange(26)).mean(1)
    return score


def mean_by(values: np.ndarray, groups: np.ndarray, size: int) -> np.ndarray:
    """(size,) mean of `values` per group number; NaN for an empty group."""
    with np.errstate(invalid="ignore"):
        return np.bincount(groups, values, size) / np.bincount(groups, minlength=size)


def cap_clusters(slots: list[int], family_of: np.ndarray, cluster_of: np.ndarray) -> np.ndarray:
    """True for faces that stay: at most FACES_PER_CLUSTER a cluster, every family's first face before second ones."""
    used: Counter[int] = Counter()
    stays = np.zeros(len(slots), bool)
    for index in sorted(range(len(slots)), key=lambda i: (slots[i], family_of[i])):
        if used[cluster_of[index]] < FACES_PER_CLUSTER:
            used[cluster_of[index]] += 1
            stays[index] = True
    return stays


def split_clusters(names: list[str], stratum: list[tuple]) -> list[str]:
    """Split of each cluster: dealt out in an order by stratum, then by a hash of the cluster's name."""
    order = sorted(range(len(names)), key=lambda i: (stratum[i], hashlib.sha256(names[i].encode()).hexdigest()))
    splits = [""] * len(names)
    for position, index in enumerate(order):
        place = (position * GOLDEN) % 1  # spreads every stratum over the three splits in their proportions
        splits[index] = next(split for split, end in SPLIT_ENDS if place < end)
    return splits
