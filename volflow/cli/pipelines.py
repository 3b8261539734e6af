"""The command ``volflow run``: a pipeline of steps."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from volflow.cli.values import Json, PlanOnly, say
from volflow.engine.run_options import OutputOptions
from volflow.errors import InvalidInput, RunFailed

__all__ = ["run"]


def run(
    options: OutputOptions,
    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help="The YAML file of its steps.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A variable's value; may be repeated."),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of such files, for editors.")
    ] = False,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:
    """Run the steps of a pipeline file, one after the other, but for those that are unchanged.

    The whole file is checked first: unknown and wrong settings are named with their lines. A step
    that fails ends the run, and the same command goes on from there. Another run of the same
    pipeline at the same time is refused with exit code 4. What ran is recorded in JSON lines beside
    the last output.

    Many cases: volflow run PIPELINE --set input='in/{case}.nii.gz' --set output='out/{case}'
    """
    if schema:
        from volflow.jobs.pipeline.schema import pipeline_schema

        typer.echo(json.dumps(pipeline_schema(), indent=2))
        return
    if pipeline is None:
        raise InvalidInput(
            "no pipeline is given; write volflow run pipelines/segment.yaml, or --schema"
        )
    from volflow.jobs.pipeline.run_pipeline import plan_run
    from volflow.jobs.pipeline.run_pipeline import run as run_pipeline

    work: Any = plan_run if plan else run_pipeline
    done = work(pipeline, **vars(options), **_variables(values or []))
    if not hasattr(done, "rows"):
        say(done.to_dict(), as_json, done.describe(), None if plan else options.progress)
        return
    text = str(done) if plan else done.outcome()
    say(done.to_dict(), as_json, text, options.progress if done.ok and not plan else None)
    if not done.ok:
        raise typer.Exit(RunFailed.exit_code)


def _variables(given: list[str]) -> dict[str, str]:
    """Values of variables, as typed.

    Examples
    --------
    >>> _variables(["input=a=b.zarr", "patch=96"])
    {'input': 'a=b.zarr', 'patch': '96'}
    """
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidInput(f"--set takes NAME=VALUE, given {text!r}; write --set input=a.zarr")
        if name in values:
            raise InvalidInput(f"--set {name} is given twice; leave one out")
        values[name] = value
    return values
