"""runtime.py: what start() decides and says, and files that are whole or not there. Also the rules of the house."""

import ast
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import course_utils
from course_utils import runtime
from course_utils.runtime import (
    available_devices,
    check_environment,
    choose_device,
    keeping_random_state,
    progress_bar,
    start,
    write_atomically,
)

PACKAGE = Path(runtime.__file__).parent


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("COURSE_DEVICE", "COURSE_PROFILE", "COURSE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---- start() -------------------------------------------------------------------------------------------------------


def test_start_says_in_one_line_what_it_decided(capsys):
    run = start("01", seed=3, device="cpu")
    line = "notebook 01 · device cpu · precision float32 · profile default · seed 3 · threads 1"
    assert capsys.readouterr().out == line + "\n" == str(run) + "\n"
    assert (run.device, run.seed, run.profile, run.threads) == (torch.device("cpu"), 3, "default", 1)
    assert torch.get_num_threads() == 1
    start(device="cpu")
    assert capsys.readouterr().out.startswith("device cpu · "), "without a notebook there is nothing before the device"


def test_start_takes_the_preferred_device_which_is_the_cpu_only_if_there_is_nothing_else():
    assert start().device == torch.device(available_devices()[0])
    assert available_devices()[-1] == "cpu"
    assert (len(available_devices()) > 1) == (torch.cuda.is_available() or torch.backends.mps.is_available())


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_gives_the_same_numbers_in_python_numpy_and_torch():
    seen = []
    for seed in (5, 5, 6):
        start(seed=seed, device="cpu")
        seen.append(draws())
    assert seen[0] == seen[1]
    assert all(a != b for a, b in zip(seen[1], seen[2], strict=True))


def test_a_seed_too_large_for_numpy_still_works():
    assert start(seed=2**40, device="cpu").seed == 2**40


def test_the_environment_wins_over_the_arguments(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.setenv("COURSE_PROFILE", "full")
    monkeypatch.setenv("COURSE_THREADS", "2")
    run = start(device="no-such-device", profile="default")
    assert (run.device.type, run.profile, run.threads) == ("cpu", "full", 2)
    assert torch.get_num_threads() == 2


def test_the_profile_picks():
    assert start(device="cpu").pick(20, full=200) == 20
    assert start(device="cpu", profile="full").pick(20, full=200) == 200


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({"device": "cuda:99"}, {}, r"device: 'cuda:99' is not on this machine; here: .*cpu"),
        ({}, {"COURSE_DEVICE": "gpu"}, r"device: 'gpu' is not on this machine; here: .*cpu"),
        ({"profile": "fast"}, {}, r"profile: got 'fast'; allowed: default, full"),
        ({}, {"COURSE_PROFILE": "fast"}, r"profile: got 'fast'; allowed: default, full"),
        ({"seed": -1}, {}, r"seed: got -1; allowed: an integer of at least 0"),
        ({"seed": 1.5}, {}, r"seed: got 1.5; allowed: an integer"),
        ({}, {"COURSE_THREADS": "0"}, r"COURSE_THREADS: got '0'; allowed: an integer of at least 1"),
        ({}, {"COURSE_THREADS": "many"}, r"COURSE_THREADS: got 'many'"),
    ],
)
def test_a_wrong_choice_is_named_and_changes_nothing(monkeypatch, arguments, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    random.seed(1)
    before, threads = random.getstate(), torch.get_num_threads()
    with pytest.raises(ValueError, match=message):
        start(**arguments)
    assert random.getstate() == before and torch.get_num_threads() == threads


@pytest.mark.parametrize(("emulated", "precision"), [(True, torch.float32), (False, torch.bfloat16)])
def test_bfloat16_only_where_the_gpu_has_it(monkeypatch, emulated, precision):
    """A T4 has none, and torch counts its emulation as support unless asked not to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    assert choose_device("cuda") == (torch.device("cuda"), precision)
    assert choose_device("cpu") == (torch.device("cpu"), torch.float32)


class OneGenerator:
    """torch.mps as far as random numbers go."""

    state = "as it was"

    def get_rng_state(self):
        return self.state

    def set_rng_state(self, state):
        self.state = state

    def manual_seed(self, seed):
        self.state = seed


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_generators_are_given_back_whatever_happens(monkeypatch, device):
    apple, before = OneGenerator(), torch.get_rng_state()
    monkeypatch.setattr(torch, "mps", apple)
    with pytest.raises(KeyError), keeping_random_state(device) as seed:
        drawn = [(seed(3), torch.rand(()))[1] for _ in range(2)]
        assert drawn[0] == drawn[1] and apple.state == (3 if device == "mps" else "as it was")
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before) and apple.state == "as it was"


# ---- write_atomically() --------------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced_and_missing_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    for content in (b"first, and longer", b"second"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert names(path.parent) == ["a.bin"]


def fails_half_way(error):
    def write(file):
        file.write(b"half")
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("cannot be pickled"), "cannot be pickled"),
        (OSError(28, "No space left on device"), r"cannot write .*a\.bin: No space left on device"),
        (KeyboardInterrupt(), None),
    ],
)
def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path, error, message):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error), match=message):
        write_atomically(path, fails_half_way(error))
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .*a\.bin: .*read-only or full"):
        write_atomically(tmp_path / "taken" / "a.bin", lambda file: file.write(b"x"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="file permissions do not stop this user")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"cannot write .*a\.bin: Permission denied"):
            write_atomically(tmp_path / "a.bin", lambda file: file.write(b"x"))
    finally:
        tmp_path.chmod(0o700)
    assert names(tmp_path) == []


# ---- rules of the house --------------------------------------------------------------------------------------------

LAYERS = (
    "runtime machinery metrics data photos photo_sets networks sampling losses heads training decoupling "
    "incremental_methods incremental openworld methods texts backbones classifier classroom experiments __main__"
).split()
MAY_PRINT = {"runtime.say"}
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def origin(name, node):
    """The parts of the module that a relative import in file `name` imports from."""
    inside = ["course_utils", *name.split(".")]
    is_package = (PACKAGE / Path(*name.split("."))).is_dir()
    base = inside[: len(inside) - node.level + is_package] + (node.module or "").split(".")
    return [part for part in base if part]


def imported_from_the_course(name, tree):
    """Top-level names of the files that `name` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            full = origin(name, node)
            yield from [full[1]] if len(full) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from [module.split(".")[1] for module in modules if module.startswith("course_utils.")]


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_imports_only_from_files_below_it(name):
    top = name.split(".")[0]
    assert top in LAYERS, f"{name}: say in the design, and here, where it belongs"
    used = set(imported_from_the_course(name, SOURCES[name])) - {top}
    assert all(LAYERS.index(other) < LAYERS.index(top) for other in used), f"{name} imports from {used}"


def test_the_front_is_small_and_the_map_names_all_of_it():
    front = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    described = re.findall(r"^    (\w+)/? {2,}\S", course_utils.__doc__, flags=re.MULTILINE)
    assert len(front) <= 18 and len(folders) == 3
    assert sorted(described) == sorted(front | folders)


def test_files_are_short():
    sizes = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 450} == {}


@pytest.mark.parametrize("name", SOURCES)
def test_names_come_from_the_file_that_defines_them(name):
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert all(alias.asname != alias.name for alias in node.names), f"{name}, line {node.lineno}: x as x"
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            there = SOURCES[".".join(origin(name, node)[1:])].body
            imports = [n for n in there if isinstance(n, ast.Import | ast.ImportFrom)]
            passed_on = {alias.asname or alias.name for n in imports for alias in n.names}
            assert not passed_on & {alias.name for alias in node.names}, (
                f"{name}, line {node.lineno}: defined elsewhere"
            )


def test_fit_can_be_read_in_a_minute():
    fit = next(node for node in SOURCES["training"].body if getattr(node, "name", "") == "fit")
    lines = (PACKAGE / "training.py").read_text(encoding="utf-8").splitlines()
    code = [
        line for line in lines[fit.lineno - 1 : fit.body[0].lineno - 1] + lines[fit.body[0].end_lineno : fit.end_lineno]
    ]
    assert len([line for line in code if line.strip() and not line.strip().startswith("#")]) <= 50


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "runtime"])
def test_only_runtime_names_devices(name):
    texts = [n.value for n in ast.walk(SOURCES[name]) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    named = {text for text in texts if text in ("cuda", "mps") or text.startswith("cuda:")}
    calls = [n.func.attr for n in ast.walk(SOURCES[name]) if isinstance(n, ast.Call) and hasattr(n.func, "attr")]
    assert "cuda" not in calls, f"{name} calls .cuda()"
    assert not named, f"{name} names {named}"


@pytest.mark.parametrize("name", SOURCES)
def test_functions_do_not_print(name):
    printing = set()
    for outer in SOURCES[name].body:
        for node in ast.walk(outer):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing.add(f"{name}.{getattr(outer, 'name', '')}")
    assert name in MAY_PRINT or printing <= MAY_PRINT, f"printing: {printing}"


def test_what_is_missing_is_named_with_advice(monkeypatch):
    needs = ["numpy>=1", "numpy>=9999", "no-such-package>=1", "pytest>=1; extra == 'test'"]
    monkeypatch.setattr("course_utils.runtime.metadata.requires", lambda name: needs)
    rows = check_environment()
    assert [(name, bool(advice)) for name, _, advice in rows[:3]] == [
        ("numpy", False),
        ("numpy", True),
        ("no-such-package", True),
    ]
    assert rows[2][1] == "missing" and [row[0] for row in rows[3:]] == ["device"]


@pytest.mark.parametrize(("quiet", "hidden"), [("1", True), ("", False)])
def test_progress_bars_can_be_hidden(monkeypatch, quiet, hidden):
    monkeypatch.setenv("COURSE_QUIET", quiet)
    with progress_bar(3, "run", delay=60) as bar:
        assert bar.disable is hidden


AFTER_UMAP = """
import torch
from course_utils.runtime import start
start()
torch.ones(300, 300).exp()  # torch has looked at its number
import numba
numba.set_num_threads(1)
print(torch.get_num_threads())
"""


def test_umap_does_not_bring_threads_back():
    """numba's threads set OpenMP's number, which is torch's too: beside other programs a training then takes ten times
    as long, because every small step waits for two threads.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    command = [sys.executable, "-c", AFTER_UMAP]
    done = subprocess.run(
        command,
        cwd=Path(course_utils.__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.splitlines()[-1:] == ["1"], done.stderr
