"""The command ``volflow predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volflow.cli.values import Json, PlanOnly, inputs, say, say_facts, say_plan
from volflow.infer.predict_options import MODEL, PredictOptions

__all__ = ["predict"]


def predict(
    volume: Annotated[
        list[str],
        typer.Argument(
            metavar="VOLUME...",
            help="The scan, as OME-Zarr or a file that can be converted; several on one grid as"
            " name=path.",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="out.zarr, or a file like out.nii.gz.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", rich_help_panel=MODEL,
            help="A bundle, a .pt2 file, or package.module:callable.",
        ),
    ],
    options: PredictOptions,
    plan: PlanOnly = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run a model over a volume, in overlapping patches or exactly, and write the result.

    What is not given is taken from the bundle. Run again after an interruption, the command does
    only what is left.
    """
    named = inputs(volume)

    from volflow.infer.predict import plan_predict
    from volflow.infer.predict import predict as run_predict

    if plan:
        say_plan(plan_predict(named, model, out, **vars(options)), as_json)
        return
    from volflow.report.facts.info import facts_of, facts_text, volume_facts

    result = run_predict(named, model, out, **vars(options))
    if isinstance(result, dict):
        by_name = {name: volume_facts(one) for name, one in result.items()}
        say(by_name, as_json, "\n".join(facts_text(facts) for facts in by_name.values()))
    else:
        say_facts(facts_of(out) if Path(out).is_file() else volume_facts(result), as_json)
