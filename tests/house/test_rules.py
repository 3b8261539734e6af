"""Rules of the house that no linter knows: each test lists all that break one rule."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path: path.read_text() for path in sorted((ROOT / "volflow").rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}

# Rooms without a name of their own fill with what belongs elsewhere.
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "base", "core"}
LONGEST_MODULE = 400
FULLEST_FOLDER = 16
LARGEST_FILE = 2**20

# A module that sub-folders may have in parallel, as each way of inference has its plan.
PARALLEL = {"__init__", "method", "plan", "job", "task"}


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_module_reads_in_one_sitting():
    lines = {_id(path): len(text.splitlines()) for path, text in SOURCES.items()}
    assert {path: n for path, n in lines.items() if n > LONGEST_MODULE} == {}


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports them by it: two of them cannot be collected together."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, n in names.items() if n > 1] == []


def test_every_folder_is_seen_at_a_glance():
    count = Counter(_id(path.parent) for path in SOURCES)
    assert {folder: n for folder, n in count.items() if n > FULLEST_FOLDER} == {}


def test_every_module_says_what_it_holds():
    """Its docstring begins with a sentence, from a capital (or our own name) to a full stop."""
    sentence = re.compile(r"(?:[A-Z0-9`]|volflow\b).*\.", re.DOTALL)
    first = {_id(path): _docstring(tree).split("\n\n")[0] for path, tree in TREES.items()}
    assert {path: text for path, text in first.items() if not sentence.fullmatch(text)} == {}


@pytest.mark.slow
def test_no_docstring_is_without_words():
    empty = [
        f"{_id(path)}: {getattr(node, 'name', 'module')}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
        and not re.search(r"[^\W\d_]{2}", _docstring(node))
    ]
    assert empty == []


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return ast.get_docstring(node) or ""


def test_every_module_names_what_it_offers():
    """`__all__` stands where something public is defined, sorted as ruff sorts it."""
    wrong = []
    for path, tree in TREES.items():
        public = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        offered = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
            and isinstance(node.value, ast.List)  # the package's own is read from its stub
        ]
        if public and offered != [sorted(set(chain.from_iterable(offered)), key=_ruff_order)]:
            wrong.append(_id(path))
    assert wrong == []


def _ruff_order(name: str) -> tuple[int, str]:
    """Constants, classes, the rest, as ruff sorts __all__."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_no_module_has_a_vague_name():
    assert [_id(path) for path in SOURCES if path.stem in VAGUE] == []


def test_no_two_modules_have_one_name():
    """But for commands, which are named like what they run, and rooms of parallel folders."""
    rooms = Counter(
        path.stem
        for path in SOURCES
        if path.parent.name != "cli"
        and not (path.stem in PARALLEL and len(path.relative_to(ROOT).parts) > 3)
        and path.stem != "__init__"
    )
    assert [name for name, n in rooms.items() if n > 1] == []


def test_no_two_classes_have_one_name():
    classes = Counter(
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, n in classes.items() if n > 1] == []


def test_nothing_is_left_unfinished():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    assert [_id(path) for path, text in SOURCES.items() if marks.search(text)] == []


def test_every_suppression_has_a_reason():
    """A bare noqa or type: ignore silences more than was meant."""
    bare = re.compile(r"#\s*noqa(?!: [A-Z]+\d+)|#\s*type:\s*ignore(?!\[)")
    assert [
        f"{_id(path)}:{number}"
        for path, text in SOURCES.items()
        for number, line in enumerate(text.splitlines(), 1)
        if bare.search(line)
    ] == []


def test_nothing_inner_is_set_by_a_path_in_words():
    """Constants and private names are set on their module, so that whoever moves one finds it."""
    by_path = re.compile(r"setattr\(\s*f?[\"']volflow[\w.{}]*\.(?:[A-Z_]+|_\w+)[\"']")
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [_id(path) for path in tests if by_path.search(path.read_text())] == []


@pytest.mark.slow
def test_no_generator_yields_in_a_grad_mode():
    """It would last while the consumer of the generator runs (see `without_gradients`)."""
    modes = re.compile(r"inference|no_grad|grad_enabled|enable_grad")
    broken = [
        f"{_id(path)}:{block.lineno}"
        for path, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and not any("contextmanager" in ast.unparse(one) for one in function.decorator_list)
        for block in ast.walk(function)
        if isinstance(block, ast.With)
        and any(modes.search(ast.unparse(item.context_expr)) for item in block.items)
        and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(block))
    ]
    assert not broken


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


def test_faults_are_proved_by_tests_that_exist():
    """Those that the table of faults names, each by its file and its name."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("\n## Faults\n")[1].split("\n## ")[0]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table)
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert all("::test_" in row or row.endswith("| the same |") for row in rows)
    assert len(named) >= len(rows) - 1
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^ *def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []


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


def test_no_cluster_takes_a_fixed_port():
    """Dask warns where another holds port 8787, and warnings are errors here."""
    fixed = []
    folders = ("benchmarks", "notebooks", "pipelines", "tests", "volflow")
    for path in sorted(chain.from_iterable((ROOT / name).rglob("*.py") for name in folders)):
        for call in _starts(path.read_text()):
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            joins = call.args or {"address", "scheduler_file"} & words.keys()
            starts = name == "LocalCluster" or (name == "Client" and not joins)
            if starts and "'127.0.0.1:0'" not in words.get("scheduler_kwargs", ""):
                fixed.append(f"{_id(path)}: {ast.unparse(call)}")
    assert fixed == []


def _starts(code: str) -> list[ast.Call]:
    """The calls in a file that starts a cluster, and in the scripts that it holds as text."""
    if not re.search(r"(Client|LocalCluster)\(", code):
        return []
    found: list[ast.Call] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            found.append(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            with suppress(SyntaxError):  # prose
                found += _starts(textwrap.dedent(node.value))
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
