"""Compare a loaded module with its file.

In a notebook a file may be edited after it was imported. The old code then still runs, and must
not be identified by the new file.
"""

from __future__ import annotations

import ast
import functools
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["parsed", "unlike_file", "unwrapped"]

Signature = tuple[Any, ...]

PARSINGS = 20  # attempts, as parsing in another thread may disturb ours
_parsing = threading.Lock()

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def unlike_file(module: ModuleType, source: bytes) -> bytes:
    """Describe the functions and constants of a loaded module if its file differs.

    Returns
    -------
    bytes
        Equal for equal code in memory; empty if the file holds all of it. Functions of the file
        that are not in memory do not count.

    Examples
    --------
    >>> made = ModuleType("made")
    >>> made.__file__ = "made.py"
    >>> exec(compile("def f(x): return x + 1", "made.py", "exec"), vars(made))
    >>> unlike_file(made, b"def f(x): return x + 1")
    b''
    >>> len(unlike_file(made, b"def f(x): return x + 2")) > 0
    True
    """
    codes = {_signature(code) for code in _codes(module)}
    written = _constants(source)
    held = {(name, repr(vars(module).get(name))) for name, _ in written}
    if codes <= _functions(source) and held == written:
        return b""
    return repr((sorted(map(repr, codes)), sorted(held))).encode()


def _signature(code: CodeType) -> Signature:
    """Return the code of a function without its line numbers."""
    constants = (
        _signature(one)
        if isinstance(one, CodeType)
        else repr(sorted(map(repr, one)) if isinstance(one, frozenset) else one)
        for one in code.co_consts
    )
    return code.co_qualname, code.co_code, code.co_names, tuple(constants)


@functools.lru_cache(maxsize=512)
def _functions(source: bytes) -> frozenset[Signature]:
    try:
        waiting = [compile(source, "module", "exec", dont_inherit=True)]
    except (SyntaxError, ValueError, RecursionError):
        waiting = []
    found = set()
    while waiting:
        code = waiting.pop()
        found.add(_signature(code))
        waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
    return frozenset(found)


@functools.lru_cache(maxsize=512)
def _constants(source: bytes) -> frozenset[tuple[str, str]]:
    """Return the values assigned once to names in capitals; other names may be state."""
    try:
        body = parsed(source).body
    except (SyntaxError, ValueError, RecursionError):
        body = []
    found: dict[str, str | None] = {}
    for node in body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and target.id.isupper():
                found[target.id] = None if target.id in found else _literal(node.value)
    return frozenset((name, text) for name, text in found.items() if text is not None)


def parsed(source: bytes) -> ast.Module:
    """Return the syntax tree of a module, in any thread.

    Python 3.11 shares the depth counter of its parser between threads, and raises SystemError if
    two threads parse at once.

    Raises
    ------
    SyntaxError, ValueError, RecursionError
        As `ast.parse`.
    """
    with _parsing:
        for _ in range(PARSINGS):
            with suppress(SystemError):
                return ast.parse(source)
        return ast.parse(source)


def _literal(node: ast.expr) -> str | None:
    """Return the text of a plain value or a tuple of plain values; None for anything else."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    parts = value if isinstance(value, tuple) else (value,)
    return repr(value) if all(isinstance(part, _PLAIN) for part in parts) else None


def _codes(module: ModuleType) -> Iterator[CodeType]:
    """Yield the code of the functions of a module and its classes that come from its file."""
    waiting: list[Any] = list(vars(module).values())
    seen: set[int] = set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        waiting += _within(thing, module.__name__)
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == module.__file__:
            yield thing.__code__


def _within(thing: Any, name: str) -> Iterable[Any]:
    if isinstance(thing, type):
        return list(vars(thing).values()) if thing.__module__ == name else ()
    return unwrapped(thing)


def unwrapped(member: Any) -> tuple[Any, ...]:
    """Return the functions behind a member of a class or module; itself if it is a function.

    Examples
    --------
    >>> [function.__name__ for function in unwrapped(staticmethod(unwrapped))]
    ['unwrapped']
    """
    if isinstance(member, property):
        return member.fget, member.fset
    if isinstance(member, staticmethod | classmethod):
        return (member.__func__,)
    if isinstance(member, functools.cached_property):
        return (member.func,)
    if isinstance(member, FunctionType):
        return member, vars(member).get("__wrapped__")
    if isinstance(member, functools._lru_cache_wrapper):
        return (member.__wrapped__,)
    return ()
