"""Options objects on a command line: their parameters with help, and what was typed, read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import Field, fields, is_dataclass
from typing import Annotated, Any, get_args

import typer

from volflow.engine.run_options import ObserveOptions, TimeOptions, WorkerOptions

__all__ = ["changed", "spelled", "typed"]

# The types of options that are not typed as text.
KINDS: dict[str, Any] = {
    "bool": bool, "bool | None": bool, "Progress": bool, "int": int, "int | None": int,
    "float | None": float,
}  # fmt: skip


def typed(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the options of its options objects one by one.

    An option that two of its objects share is typed once. ``Annotated[Options, "Panel"]`` lists
    all of them under one heading. A command whose objects say where it runs can be
    limited in time and observed.
    """
    parameters: dict[str, inspect.Parameter] = {}
    kinds: dict[str, Any] = {}
    own = inspect.signature(command, eval_str=True).parameters
    for name, parameter in own.items():
        kind, panel, *_ = *get_args(parameter.annotation), None, None
        kind = kind or parameter.annotation
        if is_dataclass(kind):
            kinds[name] = kind
            for one in _shown(kind):
                parameters.setdefault(one.name, _parameter(one, panel))
        else:
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    runs = any(issubclass(kind, WorkerOptions) for kind in kinds.values())
    for one in (*_shown(TimeOptions), *_shown(ObserveOptions)) if runs else ():
        parameters[one.name] = _parameter(one, None)

    def run(**words: Any) -> None:
        made = {name: _made(kind, words) for name, kind in kinds.items()}
        with _around(words) if runs else nullcontext():
            command(**{name: made[name] if name in made else words[name] for name in own})

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return run


@contextmanager
def _around(words: Mapping[str, Any]) -> Iterator[None]:
    """Limit the time of a command's runs, and record how they go, if that was asked for."""
    ends, asked = _made(TimeOptions, words), _made(ObserveOptions, words)
    with ExitStack() as stack:
        if ends != TimeOptions():
            from volflow.engine.time_limit import time_limit

            stack.enter_context(time_limit(**vars(ends)))
        if asked != ObserveOptions():
            from volflow.report.observe import observe

            stack.enter_context(observe(**vars(asked)))
        yield


def spelled(option: Field[Any]) -> str:
    """Return how an option is typed."""
    names = option.metadata["names"]
    return str(names[0]) if names else f"--{option.name.replace('_', '-')}"


def changed(options: Any) -> list[str]:
    """Return how those options are typed that are not at their defaults."""
    return [spelled(one) for one in _shown(options) if getattr(options, one.name) != one.default]


def _shown(kind: Any) -> list[Field[Any]]:
    """Return the options that can be typed; what all journeys share comes last."""
    return sorted((one for one in fields(kind) if one.metadata), key=lambda one: bool(one.kw_only))


def _parameter(option: Field[Any], panel: str | None) -> inspect.Parameter:
    how = option.metadata
    names = how["names"] or (spelled(option),)
    shown = typer.Option(*names, help=_help(option), rich_help_panel=panel or how["panel"])
    kind = list[str] if how["many"] else KINDS.get(str(option.type), str)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, shown],
    )


def _help(option: Field[Any]) -> str:
    """Return the help of an option, with its default where that is a value of its own."""
    text, default = str(option.metadata["help"]), option.default
    if default is None or default is False or default in ("", "auto"):
        return text
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} Default: {shown}."


def _made(kind: Any, words: Mapping[str, Any]) -> Any:
    """Return the options object of what was typed; what was not keeps its own default."""
    values: dict[str, Any] = {}
    for one in _shown(kind):
        value, read = words[one.name], one.metadata["read"]
        if value is None:
            continue
        if read is not None:
            name = spelled(one).removeprefix("--")
            value = [read(name, x) for x in value] if one.metadata["many"] else read(name, value)
        values[one.name] = value
    return kind(**values)
