"""The command ``volflow predict``: the options of `volflow.infer.predict.predict`, as typed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from volflow.cli.values import (
    Cluster,
    Json,
    Memory,
    Overwrite,
    PlanOnly,
    Quiet,
    Wait,
    given,
    inputs,
    number_or_word,
    per_axis,
    progress,
    say,
)

__all__ = ["predict"]

_model = partial(typer.Option, rich_help_panel="Model")
_patches = partial(typer.Option, rich_help_panel="Patches")
_result = partial(typer.Option, rich_help_panel="Result")
Text = str | None


def predict(  # noqa: PLR0913  one parameter per option that people type
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
        str, _model("--model", "-m", help="A bundle, a .pt2 file, or package.module:callable.")
    ],
    weights: Annotated[Text, _model(help="Weights for package.module:callable.")] = None,
    frame: Annotated[Text, _model(help="The axes that the model expects, such as RAS.")] = None,
    normalize: Annotated[Text, _model(help="minmax, zscore or percentile.")] = None,
    activation: Annotated[Text, _model(help="After blending: softmax or sigmoid.")] = None,
    batch_size: Annotated[Text, _model(help="Patches per call; by default found by trial.")] = None,
    device: Annotated[Text, _model(help="cpu, cuda or cuda:1; by default the best.")] = None,
    precision: Annotated[Text, _model(help="float32, or bfloat16 where the device has it.")] = None,
    trust: Annotated[bool, _model("--trust", help="Allow model files that can run code.")] = False,
    patch: Annotated[Text, _patches(help="The model's window: 96, or 96,96,48.")] = None,
    overlap: Annotated[Text, _patches(help="In voxels, or as a fraction below 1.")] = None,
    blend: Annotated[
        Text, _patches(help="gaussian, hann, average or crop; exact: no seams at all.")
    ] = None,
    flips: Annotated[Text, _patches(help="Average over mirrored copies along these: zyx.")] = None,
    mask: Annotated[Text, _patches(help="A volume; patches outside of it are skipped.")] = None,
    skip_below: Annotated[
        float | None, _patches(help="Skip patches whose voxels all lie below this.")
    ] = None,
    fill: Annotated[float | None, _patches(help="Value of what is skipped.")] = None,
    output: Annotated[Text, _result(help="classes or scores.")] = None,
    dtype: Annotated[Text, _result(help="Of its voxels, such as float16.")] = None,
    chunk: Annotated[Text, _result(help="Voxels of a compressed piece.")] = None,
    shard: Annotated[Text, _result(help="Voxels of a stored object.")] = None,
    levels: Annotated[
        bool, _result("--levels", help="Write coarser levels too, as volflow pyramid does.")
    ] = False,
    cluster: Cluster = None,
    wait: Wait = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    plan: PlanOnly = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a model over a volume, in overlapping patches or exactly, and write the result.

    What is not given is taken from the bundle. Run again after an interruption, the command does
    only what is left.
    """
    options: dict[str, Any] = given(
        weights=weights,
        frame=frame,
        normalize=normalize,
        activation=activation,
        batch_size=number_or_word(batch_size),
        device=device,
        precision=precision,
        patch=per_axis("patch", patch),
        overlap=per_axis("overlap", overlap),
        blend=blend,
        flips=flips,
        mask=mask,
        skip_below=skip_below,
        fill=fill,
        output=output,
        dtype=dtype,
        chunk=per_axis("chunk", chunk),
        shard=per_axis("shard", shard),
        cluster=cluster,
        wait=wait,
        memory=memory,
    )
    options |= {"trust": trust, "overwrite": overwrite, "levels": levels}
    named = inputs(volume)

    from volflow.infer.predict import plan_predict
    from volflow.infer.predict import predict as run_predict

    if plan:
        planned = plan_predict(named, model, out, **options)
        say(planned.to_dict(), as_json, planned.describe())
        return
    from volflow.report.facts.info import facts_of, facts_text, volume_facts

    result = run_predict(named, model, out, progress=progress(quiet), **options)
    if isinstance(result, dict):
        by_name = {name: volume_facts(one) for name, one in result.items()}
        say(by_name, as_json, "\n".join(facts_text(facts) for facts in by_name.values()))
    else:
        facts = facts_of(out) if Path(out).is_file() else volume_facts(result)
        say(facts, as_json, facts_text(facts))
