"""The command ``volflow evaluate``: scores of label maps against their truth."""

from __future__ import annotations

from typing import Annotated

import typer

from volflow.cli.values import Json, say
from volflow.errors import RunFailed
from volflow.volumes.evaluate.evaluate_options import EvaluateOptions

__all__ = ["evaluate"]


def evaluate(
    pred: Annotated[
        str,
        typer.Argument(
            metavar="PRED",
            help="The label map to score: a volume or a file. Of many cases 'seg/{case}.nii.gz', a"
            " folder or a table.",
        ),
    ],
    truth: Annotated[
        str, typer.Argument(metavar="TRUTH", help="The true one on the same grid, or those.")
    ],
    options: EvaluateOptions,
    as_json: Json = False,
) -> None:
    """Score label maps: Dice, IoU, precision, recall, volumes and surface distances of each class.

    Volumes are read in blocks and never held whole; the scores are exact. Of many cases mean,
    median and the 95 % interval of the mean are printed, and --csv has a row for each case.
    """
    from volflow.jobs.scoring.evaluate import failures, score_cases

    scores = score_cases(pred, truth, options)
    say(scores.to_dict(), as_json, str(scores), options.progress)
    if scores.failed and not options.skip_bad:
        typer.echo(f"volflow: {failures(scores.failed, len(scores.cases))}", err=True)
        raise typer.Exit(RunFailed.exit_code)
