"""The command ``volflow predict``: one volume, or many cases."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from volflow.cli.typed import changed
from volflow.cli.values import Json, PlanOnly, inputs, say, say_facts, say_plan
from volflow.errors import InvalidInput, RunFailed
from volflow.infer.predict_options import MODEL, PredictOptions
from volflow.jobs.batch.batch_options import CASES, BatchOptions
from volflow.option import from_keywords

__all__ = ["predict"]

CASE = "{case}"


def predict(
    *,
    volume: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VOLUME...",
            help="The scan, as OME-Zarr or a file that can be converted; several on one grid as"
            " name=path. With {case} in it, in quotes, all that match.",
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="out.zarr, or a file like out.nii.gz; 'out/{case}.nii.gz' of many."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", rich_help_panel=MODEL,
            help="A bundle, a .pt2 file, or package.module:callable.",
        ),
    ],
    options: BatchOptions,
    cases: Annotated[
        str | None,
        typer.Option(
            help="A table (.csv: case, and a column for each channel) or a folder of cases, instead"
            " of VOLUME.",
            rich_help_panel=CASES,
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Let the cluster drive the run, and end at once; needs --cluster tcp://host:port.",
        ),
    ] = False,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run a model over a volume, in overlapping patches or exactly, and write the result.

    What is not given is taken from the bundle. Run again after an interruption, the command does
    only what is left. With {case} in VOLUME and OUT it does so for each case that is new or
    changed, whatever becomes of the others; exit code 1 where some failed.
    """
    if bool(cases) == bool(volume):
        raise InvalidInput("predict needs either VOLUME or --cases, and OUT; see --help")
    named: Any = cases or inputs(volume or [])
    if cases or CASE in out or any(CASE in one for one in volume or ()):
        many = replace(options, dry_run=options.dry_run or plan)
        _predict_cases(named, model, out, many, detach=detach, as_json=as_json)
        return
    single = from_keywords(PredictOptions, vars(options))
    beside = sorted({*changed(options)} - {*changed(single), "--dry-run"})
    if beside:
        raise InvalidInput(
            f"{', '.join(beside)} goes with many cases; write {CASE} for their names in VOLUME and"
            " OUT, in quotes"
        )
    if detach and not (plan or options.dry_run):
        from volflow.infer.predict import predict as run_predict

        _say_detached(run_predict(named, model, out, **vars(single), detach=True), out, as_json)
    else:
        _predict_one(named, model, out, single, plan or options.dry_run, as_json)


def _predict_cases(
    cases: Any, model: str, out: str, options: BatchOptions, *, detach: bool, as_json: bool
) -> None:
    from volflow.jobs.batch.predict_cases import predict_cases

    if detach and not options.dry_run:
        _say_detached(predict_cases(cases, model, out, **vars(options), detach=True), out, as_json)
        return
    table: Any = predict_cases(cases, model, out, **vars(options))
    text = str(table) if options.dry_run else table.outcome()
    quiet = table.ok and not options.dry_run
    say(table.to_dict(), as_json, text, options.progress if quiet else None)
    if not table.ok and not options.dry_run:
        raise typer.Exit(RunFailed.exit_code)


def _predict_one(
    named: Any, model: str, out: str, options: PredictOptions, plan: bool, as_json: bool
) -> None:
    from volflow.infer.predict import plan_predict
    from volflow.infer.predict import predict as run_predict

    if plan:
        say_plan(plan_predict(named, model, out, **vars(options)), as_json)
        return
    from volflow.report.facts.info import facts_of, facts_text, volume_facts

    result: Any = run_predict(named, model, out, **vars(options))
    if isinstance(result, dict):
        by_name = {name: volume_facts(one) for name, one in result.items()}
        text = "\n".join(facts_text(facts) for facts in by_name.values())
        say(by_name, as_json, text, options.progress)
    else:
        facts = facts_of(out) if Path(out).is_file() else volume_facts(result)
        say_facts(facts, as_json, options.progress)


def _say_detached(run: Any, out: str, as_json: bool) -> None:
    """Say under which key the cluster drives a run, and where to look."""
    say(
        {"path": run.out, "detached": run.key},
        as_json,
        f"detached as {run.key}; volflow status {shlex.quote(out)} says how far it is",
    )
