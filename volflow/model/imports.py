"""What code a model runs: the user's modules that it imports, and the packages that are installed.

A module of the user's is identified by its bytes, as are all modules that it imports in turn; an
installed package by its version. Only what is imported is looked at, and nothing is imported to
look at it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

from volflow.model.loaded import parsed, unlike_file

__all__ = ["MAIN", "Code", "code_of", "has_source"]

# What runs as a script or in a notebook has no file of its own: much of it is no model's business.
MAIN = ("__main__", "__mp_main__")
# A result carries a version for each operation instead.
_OWN = "volflow"
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Code:
    """What code a model runs.

    Parameters
    ----------
    modules
        The user's modules by name, each with a sha256 of its file.
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
    """Return the code that modules of these names run, and all that they import.

    Parameters
    ----------
    names
        Of modules. What cannot be found, the standard library, volflow and ``__main__`` add
        nothing.

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
        if package != name:  # importing a module runs the packages around it
            waiting.append(name.rpartition(".")[0])
        spec = _find(name, known)
        if spec is None or spec.origin is None or _is_standard(spec.origin):
            continue
        versions = _versions(package) if _is_installed(spec) else {}
        packages |= versions
        if versions:  # what nobody gave a version is known by its bytes only
            continue
        content = _content(spec)
        if content is None:
            continue
        modules[name] = _digest_of_module(name, spec, content)
        if _is_python(spec):
            waiting += _imports(content, spec.parent or "")
    return Code(dict(sorted(modules.items())), dict(sorted(packages.items())))


def has_source(name: str) -> bool:
    """Whether what a loaded module holds stands in a file of its own."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return name not in MAIN and getattr(spec, "origin", None) is not None


def _find(name: str, known: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    """Where a module is or would be loaded from; unlike importlib's, this imports no package."""
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
        except Exception:  # finders of others may raise anything
            continue
        if spec is not None:
            return spec
    # Python's own finder needs the packages around a folder without __init__.py to be imported.
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
    """Whether an installer put the module there; what is installed editable is the user's."""
    path = Path(spec.origin or "")
    if set(_INSTALLED) & set(path.parts):
        return True
    # The folder that the outermost package lies in: "pip install --target" leaves its records.
    depth = spec.name.count(".") + (spec.submodule_search_locations is not None)
    try:
        return any(path.parents[depth].glob("*.dist-info"))
    except (IndexError, OSError):
        return False


@functools.cache
def _versions(package: str) -> dict[str, str]:
    """Versions of the distributions that bring a package, by their names; often it is one."""
    try:
        found = [metadata.distribution(package)]
    except metadata.PackageNotFoundError:
        names = sorted(set(metadata.packages_distributions().get(package, ())))
        found = [metadata.distribution(name) for name in names]
    return {one.metadata["Name"]: one.version for one in found}


def _is_python(spec: ModuleSpec) -> bool:
    """Whether a module is Python that can be read."""
    return str(spec.origin).endswith(".py")


def _content(spec: ModuleSpec) -> bytes | None:
    origin = str(spec.origin)
    try:
        # Loaders read what lies in archives, too.
        return bytes(spec.loader.get_data(origin))  # type: ignore[union-attr]
    except Exception:  # loaders of others may raise anything, and need not have it
        try:
            return Path(origin).read_bytes()
        except OSError:
            return None


@functools.lru_cache(maxsize=512)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Names that a module imports anywhere in it; of ``from a import b`` also ``a.b``."""
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
        said = node.args[0].value
        if called in ("import_module", "__import__") and isinstance(said, str):
            yield said


def _inner(node: ast.AST) -> Iterable[ast.AST]:
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return node.orelse  # what stands there for type checkers is never run
    return ast.iter_child_nodes(node)


def _digest_of_module(name: str, spec: ModuleSpec, content: bytes) -> str:
    """A sha256 of a module's file, and of what is in memory where that is another."""
    sha = hashlib.sha256(content)
    module = sys.modules.get(name)
    if module is not None and _is_python(spec):
        sha.update(unlike_file(module, content))
    return sha.hexdigest()
