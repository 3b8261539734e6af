"""The code that a model runs: the user's modules that it imports, and installed packages.

A user's module is identified by its bytes, as are all modules that it imports in turn; an
installed package by its version. Only imported modules are examined, and nothing is imported for
that.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

from volflow.model.loaded import parsed, unlike_file

__all__ = ["MAIN", "Code", "code_of", "has_source", "search_here"]

# A script or notebook is not a module of the model: most of its code is unrelated.
MAIN = ("__main__", "__mp_main__")
# Results record a version of each operation instead.
_OWN = "volflow"
_INSTALLED = ("site-packages", "dist-packages")


def search_here() -> None:
    """Let modules be found in the current folder, too, after all that is installed."""
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
        sys.path.append(here)  # it stays, so that worker processes find the module as well
    importlib.invalidate_caches()


@dataclass(frozen=True)
class Code:
    """The code that a model runs.

    Parameters
    ----------
    modules
        The user's modules by name, each with the sha256 of its file.
    packages
        The distributions that they and the model import, with their versions.
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    def joined(self, *others: Code) -> Code:
        """Return this code and others together."""
        modules, packages = dict(self.modules), dict(self.packages)
        for other in others:
            modules |= other.modules
            packages |= other.packages
        return Code(dict(sorted(modules.items())), dict(sorted(packages.items())))


def code_of(names: Iterable[str]) -> Code:
    """Return the code that modules run, including everything that they import.

    Parameters
    ----------
    names
        Names of modules. Modules that cannot be found, the standard library, volflow and
        ``__main__`` add nothing.

    Examples
    --------
    >>> code_of(["torch.nn", "json", "no.such.module"]).packages
    {'torch': '2...'}
    """
    modules: dict[str, str] = {}
    packages: dict[str, str] = {}
    waiting, seen = list(names), set(MAIN)
    known: dict[str, ModuleSpec | None] = {}
    while waiting:
        name = waiting.pop()
        package = name.partition(".")[0]
        if name in seen or package == _OWN:
            continue
        seen.add(name)
        if package != name:  # importing a module also runs its parent packages
            waiting.append(name.rpartition(".")[0])
        spec = _find(name, known)
        if spec is None or spec.origin is None or _is_standard(spec.origin):
            continue
        versions = _versions(package) if _is_installed(spec) else {}
        packages |= versions
        if versions:  # code without a version is identified by its bytes
            continue
        content = _content(spec)
        if content is None:
            continue
        modules[name] = _digest_of_module(name, spec, content)
        if _is_python(spec):
            waiting += _imports(content, spec.parent or "")
    return Code(dict(sorted(modules.items())), dict(sorted(packages.items())))


def has_source(name: str) -> bool:
    """Return True if a loaded module has its own source file."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return name not in MAIN and getattr(spec, "origin", None) is not None


def _find(name: str, known: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    """Return the spec of a module; unlike importlib's function, without importing packages."""
    if name not in known:
        module = sys.modules.get(name)
        found = getattr(module, "__spec__", None)
        known[name] = found if module is not None else _search(name, known)
    return known[name]


def _search(name: str, known: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    path: list[str] | None = None
    outer, _, inner = name.rpartition(".")
    if outer:
        around = _find(outer, known)
        if around is None or around.submodule_search_locations is None:
            return None
        path = list(around.submodule_search_locations)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # third-party finders may raise any error
            continue
        if spec is not None:
            return spec
    # Python's own finder requires the parents of a folder without __init__.py to be imported.
    folders = [str(folder) for at in path or () if (folder := Path(at, inner)).is_dir()]
    if not folders:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = folders
    return spec


def _is_standard(origin: str) -> bool:
    if origin in ("built-in", "frozen"):
        return True
    parts = Path(origin).parts
    roots = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return not set(_INSTALLED) & set(parts) and any(
        parts[: len(Path(root).parts)] == Path(root).parts for root in roots
    )


def _is_installed(spec: ModuleSpec) -> bool:
    """Return True if an installer installed the module; editable installs are the user's."""
    path = Path(spec.origin or "")
    if set(_INSTALLED) & set(path.parts):
        return True
    # Folder of the outermost package: "pip install --target" writes its records there.
    depth = spec.name.count(".") + (spec.submodule_search_locations is not None)
    try:
        return any(path.parents[depth].glob("*.dist-info"))
    except (IndexError, OSError):
        return False


@functools.cache
def _versions(package: str) -> dict[str, str]:
    """Return the versions, by name, of the distributions that contain a package."""
    try:
        found = [metadata.distribution(package)]
    except metadata.PackageNotFoundError:
        names = sorted(set(metadata.packages_distributions().get(package, ())))
        found = [metadata.distribution(name) for name in names]
    return {one.metadata["Name"]: one.version for one in found}


def _is_python(spec: ModuleSpec) -> bool:
    """Return True if a module has readable Python source."""
    return str(spec.origin).endswith(".py")


def _content(spec: ModuleSpec) -> bytes | None:
    origin = str(spec.origin)
    try:
        # Loaders also read from archives.
        return bytes(spec.loader.get_data(origin))  # type: ignore[union-attr]
    except Exception:  # third-party loaders may raise any error, or lack get_data
        try:
            return Path(origin).read_bytes()
        except OSError:
            return None


@functools.lru_cache(maxsize=512)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Return names that a module imports anywhere; for ``from a import b`` also ``a.b``."""
    found: dict[str, None] = {}
    try:
        waiting: list[ast.AST] = [parsed(source)]
    except (SyntaxError, ValueError, RecursionError):
        return ()
    while waiting:
        node = waiting.pop()
        for name in _imported(node, package):
            found[name] = None
        waiting += _inner(node)
    return tuple(found)


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        name = "." * node.level + (node.module or "")
        try:
            name = importlib.util.resolve_name(name, package)
        except ImportError:  # beyond the outermost package
            return
        yield name
        yield from (f"{name}.{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        literal = node.args[0].value
        if called in ("import_module", "__import__") and isinstance(literal, str):
            yield literal


def _inner(node: ast.AST) -> Iterable[ast.AST]:
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return node.orelse  # code for type checkers is never run
    return ast.iter_child_nodes(node)


def _digest_of_module(name: str, spec: ModuleSpec, content: bytes) -> str:
    """Return the sha256 of a module's file, and of the loaded code if that differs."""
    sha = hashlib.sha256(content)
    module = sys.modules.get(name)
    if module is not None and _is_python(spec):
        sha.update(unlike_file(module, content))
    return sha.hexdigest()
