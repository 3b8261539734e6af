"""volflow: a volume too big for memory behaves as if it fitted.

The public names stand in ``__init__.pyi``, which type checkers and editors read. Each is imported
when it is first used, so that ``import volflow`` costs nothing and a program that only opens
volumes never loads torch.

>>> import volflow as vf
>>> roi = vf.Roi((0, 0, 0), (8, 8, 8))
>>> roi.shape
(8, 8, 8)
"""

from __future__ import annotations

import importlib
from pathlib import Path

__version__ = "0.1.0"


def _public() -> dict[str, tuple[str, str]]:
    """Return the module of each public name and its name there, as the stub says."""
    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    # Each name has a line of its own: from MODULE import NAME as PUBLIC
    words = [line.split() for line in stub.splitlines() if line.startswith("from ")]
    return {public: (module, name) for _, module, _, name, _, public, *_ in words}


_PUBLIC = _public()

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'volflow' has no attribute {name!r}")
    module, original = _PUBLIC[name]
    place = importlib.import_module(module)
    if hasattr(place, "__path__"):  # a folder: its public names are modules in it, such as errors
        value: object = importlib.import_module(f"{module}.{original}")
    else:
        value = getattr(place, original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return [*__all__, "__version__"]
