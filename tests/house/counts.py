"""How large the package is, and how long the way of a prediction through it.

    python tests/house/counts.py                      # this tree
    python tests/house/counts.py --against 455252b    # a revision beside it: before | after
    python tests/house/counts.py --json
    python tests/house/counts.py --names              # also which types and files

Read from the source: lines of code (without docstrings, comments and blanks) per wing, files per
folder (``__init__.py`` and stubs included), classes and dataclasses.

Counted by ``sys.setprofile`` in all threads, from the call of ``vf.predict`` until it returns, for
a tiny blended prediction of a stored volume and a tiny exact one in several passes:

types
    Classes of the package of which an object was made. Enumerations and protocols do not count,
    nor what is made while modules are imported; all modules are imported before.
records
    Those of them that are dataclasses or named tuples.
files
    Files of the package of which a function, lambda or comprehension was called.
types, files in tasks
    In other threads than the caller's: reading, computing and writing blocks, but not planning.
returns
    Calls into a file, from another of the package or from outside, beyond the first of each file.
    Each pair of functions counts once, so that the figure does not grow with the blocks.

What acts only now and then, such as waiting for a worker, makes figures differ by one or two.

``PYTHONPATH`` says which tree is meant; by default the one that holds this script.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import importlib
import io
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from revisions import ROOT, package_of

NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
JOURNEYS = ("blended", "exact")
FIGURES = ("types", "records", "files", "types in tasks", "files in tasks", "returns")

Counts = dict[str, Any]


# Read from the source.


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines of all strings that stand alone as statements."""
    found: set[int] = set()
    for node in ast.walk(tree):
        alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if alone and isinstance(node.value.value, str):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def code_lines(text: str) -> int:
    """Lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(text)))


def is_dataclass(node: ast.ClassDef) -> bool:
    names = {ast.unparse(d).split("(")[0].rsplit(".")[-1] for d in node.decorator_list}
    return "dataclass" in names


def source_counts(package: Path) -> Counts:
    """Lines, files and classes of a package by its source."""
    lines: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    classes = records = 0
    for path in sorted((*package.rglob("*.py"), *package.rglob("*.pyi"))):
        place = path.relative_to(package)
        text = path.read_text()
        lines[place.parts[0] if len(place.parts) > 1 else "(root)"] += code_lines(text)
        folders[str(place.parent)] += 1
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)]
        classes += len(nodes)
        records += sum(map(is_dataclass, nodes))
    return {
        "lines": sum(lines.values()),
        "lines by wing": dict(lines),
        "files": sum(folders.values()),
        "most files in a folder": max(folders.values()),
        "files by folder": dict(folders),
        "classes": classes,
        "dataclasses": records,
    }


# Counted while a prediction runs.


class Way:
    """What the frames of a run say."""

    def __init__(self, package: Path) -> None:
        self.package = f"{package}{os.sep}"
        self.caller = threading.get_ident()
        self.types: Counter[str] = Counter()
        self.records: set[str] = set()
        self.files: set[str] = set()
        self.in_tasks: set[str] = set()  # types and files
        self.calls: set[tuple[str, str, str, str]] = set()
        self.seen: set[int] = set()  # objects of classes without an __init__
        self.alive: list[object] = []  # so that no number is given twice

    @contextmanager
    def watched(self) -> Iterator[None]:
        threading.setprofile(self.note)
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    def note(self, frame: FrameType, event: str, arg: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        ours = code.co_filename.startswith(self.package)
        if code.co_argcount and (ours or code.co_name in ("__init__", "__new__", "<lambda>")):
            self._note_type(frame, frame.f_locals.get(code.co_varnames[0]))
        # The bodies of modules and classes run while they are imported: they are not optimized.
        if ours and code.co_flags & 1:
            self._note_file(frame)

    def _note_type(self, frame: FrameType, first: object) -> None:
        name = frame.f_code.co_name
        if isinstance(first, type):  # a named tuple is made by __new__, which is a lambda
            if frame.f_code.co_filename.startswith("<") and issubclass(first, tuple):
                self._add(first)
        elif name == "__init__":
            if not _calls_itself(frame):
                self._add(type(first))
        elif type(first).__init__ is object.__init__ and id(first) not in self.seen:
            self.seen.add(id(first))
            self.alive.append(first)
            self._add(type(first))

    def _add(self, kind: type) -> None:
        if not kind.__module__.startswith("volflow"):
            return
        if issubclass(kind, enum.Enum) or getattr(kind, "_is_protocol", False):
            return
        name = f"{kind.__module__}.{kind.__qualname__}"
        self.types[name] += 1
        if dataclasses.is_dataclass(kind) or issubclass(kind, tuple):
            self.records.add(name)
        self._note_thread(name)

    def _note_thread(self, name: str) -> None:
        if threading.get_ident() != self.caller:
            self.in_tasks.add(name)

    def _note_file(self, frame: FrameType) -> None:
        file = frame.f_code.co_filename
        caller = frame.f_back
        while caller is not None and not self._calls(caller):
            caller = caller.f_back
        self.files.add(file)
        self._note_thread(file)
        if caller is None or caller.f_code.co_filename != file:
            there = caller.f_code if caller is not None else None
            before = (there.co_filename, there.co_qualname) if there is not None else ("", "")
            self.calls.add((*before, file, frame.f_code.co_qualname))

    def _calls(self, frame: FrameType) -> bool:
        code = frame.f_code
        return code.co_filename.startswith(self.package) and bool(code.co_flags & 1)

    def counts(self) -> Counts:
        files = {name.removeprefix(self.package) for name in self.files}
        return {
            "types": len(self.types),
            "records": len(self.records),
            "files": len(files),
            "types in tasks": len(self.types.keys() & self.in_tasks),
            "files in tasks": len(self.files & self.in_tasks),
            "returns": len(self.calls) - len(files),
            "objects by type": dict(sorted(self.types.items())),
            "files by name": sorted(files),
        }


def _calls_itself(frame: FrameType) -> bool:
    """Whether an ``__init__`` was called by that of a subclass, for the same object."""
    caller = frame.f_back
    if caller is None or caller.f_code.co_name != "__init__" or not caller.f_code.co_argcount:
        return False
    names = frame.f_code.co_varnames[0], caller.f_code.co_varnames[0]
    return frame.f_locals.get(names[0]) is caller.f_locals.get(names[1])


def import_all(package: Any) -> None:
    """All modules, so that none is imported while a prediction is watched."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        with suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(found.name)


def run_counts(journey: str) -> Counts:
    """The way of a tiny prediction, in this process."""
    import torch
    from bits_inputs import conv_net, encoder, scan, stored

    import volflow as vf

    import_all(vf)
    torch.set_num_threads(1)
    way = Way(Path(vf.__file__).parent)
    layout: dict[str, Any] = {"chunk": 8, "shard": 8, "progress": False}
    home = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="counts-") as folder:
        os.chdir(folder)
        if journey == "blended":
            volume, net = stored("scan.zarr", scan()), conv_net()
            options: dict[str, Any] = {"patch": 8, "memory": "1GiB"}
        else:
            volume = stored("scan.zarr", scan().astype("float64"))
            # So little memory that statistics, a node and the result take a pass each.
            net, options = encoder("instance").double(), {"blend": "exact", "memory": "52MiB"}
        with way.watched():
            result = vf.predict(volume, net, "out.zarr", **layout, **options)
        assert result.shape == (2, *volume.shape)
        os.chdir(home)
    return way.counts()


# All together.


def counts_of(tree: Path) -> Counts:
    """All counts of a tree; predictions run in processes of their own."""
    found: Counts = {"source": source_counts(tree / "volflow")}
    for journey in JOURNEYS:
        command = [sys.executable, __file__, "--journey", journey]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found[journey] = json.loads(done.stdout.splitlines()[-1])
    return found


def largest(counts: Counts) -> set[str]:
    """The five folders of most files."""
    folders = counts["source"]["files by folder"]
    return set(sorted(folders, key=folders.__getitem__, reverse=True)[:5])


def rows(counts: Counts, folders: set[str]) -> dict[str, int]:
    """The figures by name, in the order of the table."""
    source = counts["source"]
    found = {"lines of code": source["lines"]}
    found |= {f"  {wing}": n for wing, n in sorted(source["lines by wing"].items())}
    found |= {name: source[name] for name in ("files", "classes", "dataclasses")}
    found["most files in a folder"] = source["most files in a folder"]
    by_folder = source["files by folder"]
    found |= {f"  {name}/": by_folder[name] for name in sorted(folders & by_folder.keys())}
    for journey in JOURNEYS:
        found |= {f"{journey}: {name}": counts[journey][name] for name in FIGURES}
    return found


def table(before: Counts | None, after: Counts) -> str:
    if before is None:
        return "\n".join(f"{name:<26}{n:>8,}" for name, n in rows(after, largest(after)).items())
    folders = largest(before) | largest(after)
    old, new = rows(before, folders), rows(after, folders)
    lines = [f"{'':<26}{'before':>8} |{'after':>8}"]
    # Wings and folders of both, where the older tree has them.
    names = list(dict.fromkeys([*_with(old, new)]))
    for name in names:
        was, now = old.get(name), new.get(name)
        share = f"{now / was - 1:>+8.1%}" if was and now else ""
        cells = ["–" if n is None else f"{n:,}" for n in (was, now)]
        lines.append(f"{name:<26}{cells[0]:>8} |{cells[1]:>8}{share}")
    return "\n".join(lines)


def _with(old: dict[str, int], new: dict[str, int]) -> Iterator[str]:
    """The names of both in one order: each heading, then what belongs to it in either."""
    for heading in (name for name in new if not name.startswith("  ")):
        yield heading
        parts = [*_parts(old, heading), *_parts(new, heading)]
        yield from sorted(set(parts))


def _parts(names: dict[str, int], heading: str) -> list[str]:
    listed = list(names)
    found = []
    for name in listed[listed.index(heading) + 1 :] if heading in listed else []:
        if not name.startswith("  "):
            break
        found.append(name)
    return found


def names(counts: Counts) -> str:
    """Which types and files there are on each way."""
    lines = []
    for journey in JOURNEYS:
        lines.append(f"\n{journey}: objects made, by type")
        lines += [f"  {n:>6} {name}" for name, n in counts[journey]["objects by type"].items()]
        lines.append(f"{journey}: files entered")
        lines += [f"  {name}" for name in counts[journey]["files by name"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--journey", choices=JOURNEYS, help=argparse.SUPPRESS)
    parser.add_argument("--against", metavar="REV", help="a git revision to stand beside it")
    parser.add_argument("--json", action="store_true", help="everything, for machines")
    parser.add_argument("--names", action="store_true", help="name the types and files, too")
    options = parser.parse_args()
    if options.journey:
        print(json.dumps(run_counts(options.journey)))
        return
    here = next((p for p in map(Path, sys.path) if (p / "volflow").is_dir()), ROOT).resolve()
    before = None
    if options.against:
        with package_of(options.against) as tree:
            before = counts_of(tree)
    after = counts_of(here)
    if options.json:
        print(json.dumps({"before": before, "after": after} if before else after, indent=1))
        return
    print(table(before, after))
    if options.names:
        print(names(after))


if __name__ == "__main__":
    main()
