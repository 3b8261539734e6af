"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "volflow").rglob("*.py"))

# Rooms without a name of their own fill with what belongs elsewhere.
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "base", "core"}
LONGEST_MODULE = 400
LARGEST_FILE = 2**20


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("module", MODULES, ids=_id)
def test_module_reads_in_one_sitting(module):
    text = module.read_text()
    assert len(text.splitlines()) <= LONGEST_MODULE
    assert module.stem not in VAGUE
    assert ast.get_docstring(ast.parse(text)), "a module begins by saying what it holds"


@pytest.mark.parametrize("module", MODULES, ids=_id)
def test_module_names_what_it_offers(module):
    tree = ast.parse(module.read_text())
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    offered = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    if not defined:
        return
    assert offered, "__all__ is missing"
    names = ast.literal_eval(offered[0].value)
    assert names == sorted(set(names), key=_ruff_order)


def _ruff_order(name: str) -> tuple[int, str]:
    """Constants, classes, the rest, as ruff sorts __all__."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("module", MODULES, ids=_id)
def test_nothing_is_left_unfinished(module):
    text = module.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    assert "NotImplementedError" not in text


def test_every_suppression_has_a_reason():
    """A bare noqa or type: ignore silences more than was meant."""
    bare = []
    for module in MODULES:
        for number, line in enumerate(module.read_text().splitlines(), 1):
            if re.search(r"#\s*noqa(?!: [A-Z]+\d+)", line) or re.search(
                r"#\s*type:\s*ignore(?!\[)", line
            ):
                bare.append(f"{_id(module)}:{number}")
    assert not bare


def test_constraints_pin_every_direct_dependency(pyproject):
    """A fresh machine gets the versions that were tested, on every Python that is supported."""
    project = pyproject["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    wanted = [*project["dependencies"], *extras]
    names = {re.split(r"[\[<>=;~! ]", line)[0].lower() for line in wanted} - {"volflow"}
    pins = [
        line.split("#")[0].strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.split("#")[0].strip()
    ]
    assert all("==" in pin for pin in pins)
    assert names <= {pin.split("==")[0].lower() for pin in pins}
    assert "torch==2.13.0" in pins


def test_readme_commands_are_those_of_ci():
    """The two commands of the README are the ones that are tested."""
    readme = (ROOT / "README.md").read_text()
    lines = [line.strip() for line in readme.splitlines() if line.startswith("python -m venv")]
    fresh = "python -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt "
    assert lines == [
        fresh + '".[demo]" && volflow demo',
        fresh + '-e ".[dev]" && python -m pytest',
    ]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("folder", ["benchmarks", "notebooks", "pipelines", "tests", "volflow"])
def test_no_cluster_takes_a_fixed_port(folder):
    """Dask warns where another holds port 8787, and warnings are errors here."""
    fixed = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for call in _calls(path.read_text()):
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            joins = call.args or {"address", "scheduler_file"} & words.keys()
            starts = name == "LocalCluster" or (name == "Client" and not joins)
            if starts and "'127.0.0.1:0'" not in words.get("scheduler_kwargs", ""):
                fixed.append(f"{_id(path)}: {ast.unparse(call)}")
    assert fixed == []


def _calls(code: str) -> list[ast.Call]:
    """The calls in a file, and in the scripts that it holds as text."""
    found: list[ast.Call] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            found.append(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            with suppress(SyntaxError):  # prose
                found += _calls(textwrap.dedent(node.value))
    return found


def test_no_large_file_in_the_tree():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip(reason="not a git checkout: a packed source tree has no list of files")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert [_id(f) for f in files if f.is_file() and f.stat().st_size > LARGEST_FILE] == []


def test_package_brings_its_data(tmp_path):
    """The wheel holds the type marker, and the bundle that the demo opens."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("volflow/py.typed", "volflow/cli/__init__.py", "volflow/demo/bundle/bundle.json"):
        assert name in names
