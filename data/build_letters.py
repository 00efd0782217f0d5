"""Build "Letters": capitals A-Z and digits 0-9 in several hundred free typefaces, 28 x 28 grey.

    python data/build_letters.py fetch FONTS_DIR      # download and unpack Debian packages (no root, nothing installed)
    python data/build_letters.py judge FONTS_DIR      # slow: choose and judge families -> families.csv, faces.csv
    python data/build_letters.py build FONTS_DIR      # fast, same bytes each time -> letters.npz, letters.sha256
    python data/build_letters.py sheet                # contact_sheet.png from letters.npz
    python data/build_letters.py datasheet            # the numbers and tables in README.md and FONTS.md

Only `build` is needed to make the file again: `judge` has been run, and its two tables are part of the repository.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from letters_fonts import CHARACTERS, Face, render_face, scan, sha256
from PIL import features
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SPLIT_NAMES = ("train", "validation", "test")
FAMILY_COLUMNS = (
    "family",
    "designer",
    "package",
    "version",
    "licence",
    "cluster",
    "faces",
    "legibility",
    "cluster_legibility",
    "decision",
    "split",
)
FACE_COLUMNS = ("face", "family", "package", "path", "sha256")


class FontChanged(RuntimeError):
    """A font file is missing or is not the one the data set was made from."""


def packages() -> list[str]:
    """The Debian packages listed in font_packages.txt."""
    lines = (HERE / "font_packages.txt").read_text().splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, then rename it, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Write dictionaries as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV table as dictionaries."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fetch(fonts: Path) -> None:
    """Download every package into fonts/debs and unpack it into fonts/tree/PACKAGE."""
    for folder in ("debs", "tree"):
        (fonts / folder).mkdir(parents=True, exist_ok=True)
    have = {file.name.split("_")[0] for file in (fonts / "debs").glob("*.deb")}
    missing = [name for name in packages() if name not in have]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=fonts / "debs", check=True)
    for deb in tqdm(sorted((fonts / "debs").glob("*.deb")), "unpack"):
        subprocess.run(["dpkg-deb", "-x", deb, fonts / "tree" / deb.name.split("_")[0]], check=True)


def package_versions(fonts: Path) -> dict[str, str]:
    """Package -> Debian version, from the names of the downloaded files."""
    names = [file.name.split("_") for file in (fonts / "debs").glob("*.deb")]
    return {name[0]: name[1].replace("%3a", ":") for name in names}


def judge(fonts: Path) -> None:
    """Decide for every family whether it stays; write families.csv and faces.csv. Minutes to tens of minutes."""
    import letters_judge as rules

    tree = fonts / "tree"
    families = rules.group_families(scan(tree, packages()))
    decision = dict.fromkeys(families, "")
    for name in rules.subsample_large_designers(families):
        decision[name] = "left out: only every second family of this designer is used"
    for name, faces in families.items():
        if not any(face.complete for face in faces):
            decision[name] = decision[name] or "dropped: A-Z or 0-9 not mapped"
        elif not any(face.licence for face in faces):
            decision[name] = decision[name] or "dropped: licence not identified"

    # Render what is left; faults are per face, and a family without a sound face goes.
    faces: list[Face] = []
    pictures, slots = [], []
    for name, members in tqdm(families.items(), "render"):
        if decision[name]:
            continue
        faults = []
        for slot, face in enumerate(rules.choose_faces([face for face in members if face.complete and face.licence])):
            try:
                glyphs = render_face(tree / face.package / face.path)
                faults.append(rules.face_fault(glyphs))
            except (OSError, ValueError) as error:
                faults.append(f"cannot be rendered ({type(error).__name__})")
            if not faults[-1]:
                faces.append(face)
                pictures.append(glyphs)
                slots.append(slot)
        if all(faults):
            decision[name] = f"dropped: {faults[0] if faults else 'no usable face'}"
    glyphs = np.stack(pictures)

    # Copies, then clusters of look-alikes, then legibility by models that never saw the cluster.
    order = sorted(range(len(faces)), key=lambda i: (faces[i].package == rules.TEX_PACKAGE, slots[i]))
    repeated = np.zeros(len(faces), bool)
    repeated[order] = rules.repeated_faces(glyphs[order])
    stay = np.flatnonzero(~repeated)
    faces, glyphs, slots = [faces[i] for i in stay], glyphs[stay], [slots[i] for i in stay]
    names = list(dict.fromkeys(face.family for face in faces))
    for name in families:
        decision[name] = decision[name] or ("" if name in set(names) else "dropped: same drawings as another family")
    family_of = np.array([names.index(face.family) for face in faces])
    cluster = rules.cluster_families(faces, family_of, glyphs)
    print(f"{len(faces)} faces, {len(names)} families, {cluster.max() + 1} clusters before legibility", flush=True)
    score = judge_twice(glyphs, cluster[family_of], family_of, len(names))
    by_family = rules.mean_by(score, family_of, len(names))
    by_cluster = rules.mean_by(score, cluster[family_of], cluster.max() + 1)
    for index, name in enumerate(names):
        if by_family[index] <= rules.LEGIBLE:
            decision[name] = "dropped: half of its capitals or fewer read by models that never saw its cluster"
        elif rules.OTHER_SCRIPT.search(name):
            decision[name] = "dropped: its name says symbols or another script"

    legible = np.array([not decision[face.family] for face in faces])
    kept = np.flatnonzero(legible)
    kept = kept[rules.cap_clusters([slots[i] for i in kept], family_of[kept], cluster[family_of[kept]])]
    count = Counter(faces[i].family for i in kept)
    for name in names:
        full = f"left out: its cluster already has {rules.FACES_PER_CLUSTER} faces"
        decision[name] = decision[name] or (rules.KEPT if count[name] else full)
    write_verdict(fonts, families, decision, names, cluster, by_family, by_cluster, [faces[i] for i in kept])


def judge_twice(glyphs: np.ndarray, cluster: np.ndarray, family: np.ndarray, families: int) -> np.ndarray:
    """Legibility of every face; the second round trains without the families that the first could not read."""
    import letters_judge as rules

    first = rules.legibility(glyphs, cluster, np.ones(len(glyphs), bool), epochs=4)
    trusted = rules.mean_by(first, family, families)[family] > rules.LEGIBLE
    print(f"first round: {first.mean():.1%} read, {trusted.mean():.1%} of the faces trusted", flush=True)
    return rules.legibility(glyphs, cluster, trusted, epochs=8)


def write_verdict(fonts, families, decision, names, cluster, by_family, by_cluster, kept: list[Face]) -> None:
    """Number the clusters (kept ones first), split them, and write both tables."""
    import letters_judge as rules

    index = {name: i for i, name in enumerate(names)}
    kept_names = [name for name in names if decision[name] == rules.KEPT]
    numbers = list(dict.fromkeys(cluster[index[name]] for name in kept_names))
    first = {c: next(name for name in kept_names if cluster[index[name]] == c) for c in numbers}
    large = [families[first[c]][0].package in rules.LARGE_DESIGNERS for c in numbers]
    size = Counter(cluster[index[name]] for name in kept_names)
    stratum = [(large[i], size[c] > 2, bool(by_cluster[c] >= 0.95)) for i, c in enumerate(numbers)]
    split = dict(zip(numbers, rules.split_clusters([first[c] for c in numbers], stratum), strict=True))
    numbers += list(dict.fromkeys(cluster[i] for i in range(len(names)) if cluster[i] not in split))
    versions, count = package_versions(fonts), Counter(face.family for face in kept)
    rows = []
    for name, faces in families.items():
        i = index.get(name)
        known = i is not None
        rows.append(
            {
                "family": name,
                "designer": faces[0].designer or "not named in the font",
                "package": faces[0].package,
                "version": versions.get(faces[0].package, ""),
                "licence": faces[0].licence or "not identified",
                "cluster": numbers.index(cluster[i]) if known else "",
                "faces": count[name],
                "legibility": f"{by_family[i]:.3f}" if known else "",
                "cluster_legibility": f"{by_cluster[cluster[i]]:.3f}" if known else "",
                "decision": decision[name],
                "split": split[cluster[i]] if count[name] else "",
            }
        )
    write_table(HERE / "families.csv", FAMILY_COLUMNS, rows)
    lines = [
        {
            "face": face.name,
            "family": face.family,
            "package": face.package,
            "path": face.path,
            "sha256": sha256(fonts / "tree" / face.package / face.path),
        }
        for face in kept
    ]
    lines.sort(key=lambda row: (row["family"].casefold(), row["family"], row["path"]))
    write_table(HERE / "faces.csv", FACE_COLUMNS, lines)


def render_checked(file: Path, digest: str) -> np.ndarray:
    """Render all glyphs of one font file after checking that it is the file the tables were made from."""
    if not file.exists():
        raise FontChanged(f"{file} is missing: run 'fetch' first, or the Debian release is another one")
    found = sha256(file)
    if found != digest:
        raise FontChanged(f"{file} is not the font that faces.csv names: sha256 {found}, expected {digest}")
    return render_face(file)


def save_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file as bytes that depend on the arrays only: fixed order, fixed time stamps."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, member.getvalue(), compresslevel=9)
    return output.getvalue()


def build(fonts: Path, target: Path = HERE) -> Path:
    """Render the faces of faces.csv and write letters.npz and letters.sha256 into `target`."""
    families = {row["family"]: row for row in read_table(HERE / "families.csv") if row["decision"] == "kept"}
    names = sorted(families, key=lambda name: (name.casefold(), name))
    rows = read_table(HERE / "faces.csv")
    glyphs = [render_checked(fonts / "tree" / r["package"] / r["path"], r["sha256"]) for r in tqdm(rows, "build")]
    owner = [families[row["family"]] for row in rows]
    made_with = f"FreeType {features.version('freetype2')}"
    content = save_arrays(
        {
            "glyphs": np.stack(glyphs),
            "face_names": np.array([row["face"] for row in rows]),
            "family": np.array([names.index(row["family"]) for row in rows], np.int16),
            "cluster": np.array([int(row["cluster"]) for row in owner], np.int16),
            "split": np.array([SPLIT_NAMES.index(row["split"]) for row in owner], np.uint8),
            "family_names": np.array(names),
            "characters": np.array(list(CHARACTERS)),
            "made_with": np.array(made_with),
        }
    )
    write_atomically(target / "letters.npz", content)
    digest = hashlib.sha256(content).hexdigest()
    write_atomically(target / "letters.sha256", f"{digest}  letters.npz\n".encode())
    print(f"{len(rows)} faces, {len(names)} families, {len(content) / 2**20:.2f} MiB, sha256 {digest}")
    return target / "letters.npz"


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    import letters_datasheet as sheet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("fetch", fetch), ("judge", judge), ("build", build)):
        command = commands.add_parser(name, help=run.__doc__)
        command.add_argument("fonts", type=Path, metavar="FONTS_DIR")
        command.set_defaults(run=lambda options, run=run: run(options.fonts))
    for name, run in (("sheet", sheet.draw_sheet), ("datasheet", sheet.write_datasheet), ("check", sheet.check)):
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=lambda options, run=run: run())
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except FontChanged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
