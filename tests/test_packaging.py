"""pyproject.toml, constraints.txt, environment.yml and CITATION.cff say the same."""

import ast
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DEPENDENCIES = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line]
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "seaborn": "seaborn-base",
    "jupyter-client": "jupyter_client",
}
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "umap": "umap-learn", "yaml": "pyyaml"}


def yaml_file(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def machine(system, python):
    platform = {"Linux": "linux", "Windows": "win32", "Darwin": "darwin"}[system]
    return {
        "platform_system": system,
        "sys_platform": platform,
        "os_name": "nt" if system == "Windows" else "posix",
        "platform_machine": {"Linux": "x86_64", "Windows": "AMD64", "Darwin": "arm64"}[system],
        "python_version": python,
        "python_full_version": f"{python}.5",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


def test_every_dependency_has_one_lower_bound_and_nothing_else():
    for requirement in DEPENDENCIES + EXTRAS:
        assert [s.operator for s in requirement.specifier] == [">="], requirement


def test_constraints_are_plain_versions_from_nowhere_in_particular():
    for pin in PINS:
        (version,) = pin.specifier
        assert version.operator == "==" and "+" not in version.version and pin.url is None and not pin.extras, pin
    assert not any(sign in str(pin) for pin in PINS for sign in ("://", "@", "--"))


@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_fit_the_bounds_on_every_system(system, python):
    pins = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(machine(system, python))]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names)), "two versions of one package"
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    for requirement in DEPENDENCIES + EXTRAS:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    assert any(name.startswith("nvidia-") for name in names) == (system == "Linux")


def test_conda_environment_has_the_same_dependencies_and_bounds():
    wanted = {CONDA_NAMES.get(r.name, r.name) + str(r.specifier) for r in DEPENDENCIES}
    wanted |= {"python" + PROJECT["requires-python"], "pip"}
    *conda, pip = yaml_file("environment.yml")["dependencies"]
    assert set(conda) == wanted and len(conda) == len(wanted)
    assert pip == {"pip": ["-e .[test,site]"]}


def imported_modules(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_what_the_package_imports_is_declared():
    declared = {canonicalize_name(requirement.name) for requirement in DEPENDENCIES + EXTRAS}
    for file in (ROOT / "course_utils").rglob("*.py"):
        for module in set(imported_modules(file)) - sys.stdlib_module_names - {"course_utils"}:
            name = canonicalize_name(DISTRIBUTIONS.get(module, module))
            assert name in declared, f"{file.name} imports {module}, which pyproject.toml does not declare"


def test_every_package_folder_is_listed():
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "course_utils").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_citation_and_licences():
    citation = yaml_file("CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"]
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in PROJECT["license-files"]}
    assert texts["LICENSE"].startswith("MIT License") and PROJECT["authors"][0]["name"] in texts["LICENSE"]
    assert "Creative Commons Attribution 4.0 International Public License" in " ".join(texts["LICENSE-TEXT"].split())
