"""`normlab bench`: arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normlab.errors import UsageError


def bench(
    norms: Annotated[
        str | None,
        typer.Option(
            help="Norms, as in bn,gn:groups=8; also layernorm, rmsnorm, channelnorm.",
            show_default="bn,in,bin,ln,gn; --step: bn",
        ),
    ] = None,
    shapes: Annotated[
        str | None, typer.Option(help="Shapes, as in 128x16x32x32,2x64x2x2.", show_default="seven of residual nets")
    ] = None,
    forms: Annotated[
        str | None, typer.Option(help="plain, act, residual.", show_default="all; --model: as the model has them")
    ] = None,
    layouts: Annotated[str, typer.Option(help="Memory layouts.")] = "channels_first,channels_last",
    act: Annotated[str, typer.Option(help="relu, leaky_relu, silu or gelu.")] = "relu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU.", show_default="as torch has")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the sides take turns.")] = 7,
    with_compiled: Annotated[
        bool, typer.Option("--compile", help="Set torch.compile beside ours too; some seconds a row, once.")
    ] = False,
    above_cache: Annotated[
        bool, typer.Option("--above-cache", help="Add a shape larger than the last-level cache.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Shapes of this model: package.module:factory, file.py:factory, resnet14.", show_default=False
        ),
    ] = None,
    model_input: Annotated[
        str | None, typer.Option("--input", help="The model's input, as in 32,3,224,224.", show_default=False)
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="Instead: a training step of ResNet-14, or of --model.")] = False,
    exactness: Annotated[bool, typer.Option("--exactness", help="Instead: errors against float64.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Instead: peak memory of a training step.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="The layers, and all of these three.")] = False,
    chart: Annotated[
        Path | None, typer.Option(help="Draw the layers' rows as a roofline: .svg or .png.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; the table goes to standard error.")] = False,
) -> None:
    """Time the layers, forward and backward, beside torch's eager and compiled ones, on your shapes and device.

    Rows on which ours is slower are marked and listed. Options that take several values take them with commas.
    """
    from normlab.bench import work
    from normlab.bench.chart import check_path

    wanted = [name for name, on in (("step", step), ("exactness", exactness), ("memory", memory)) if on]
    parts = ["layers", "step", "exactness", "memory"] if everything else wanted or ["layers"]
    if (model is None) != (model_input is None):
        raise UsageError("--model and --input belong together, as in --model file.py:factory --input 32,3,224,224")
    if model is not None and (above_cache or any(option is not None for option in (norms, shapes, forms))):
        raise UsageError(
            "--model brings its own norms, shapes and forms; leave out --norms, --shapes, --forms and --above-cache"
        )
    if "layers" not in parts and chart:
        raise UsageError("--chart is about the layers; leave out --step, --exactness and --memory, or say --all")
    if model and not everything and {"exactness", "memory"} & set(parts):
        raise UsageError("--model is about the layers and the step; leave out --exactness and --memory, or say --all")
    if chart is not None:
        check_path(chart)
    plan = {
        "norms": None if norms is None else work.parse_norms(norms),
        "shapes": list(work.SHAPES) if shapes is None else work.parse_shapes(shapes),
        "forms": list(work.FORMS) if forms is None else work.parse_choices(forms, "--forms", work.FORMS),
        "layouts": work.parse_choices(layouts, "--layouts", work.LAYOUTS),
        "act": work.parse_choice(act, "--act", work.ACTIVATIONS),
        "dtype": work.parse_choice(dtype, "--dtype", tuple(work.DTYPES)),
        "model_input": None if model_input is None else work.parse_input(model_input),
    }
    # torch loads here, so that the mistakes above are reported at once
    from normlab.bench.run import Plan, run

    run(
        Plan(
            parts=parts,
            device=device,
            threads=threads,
            rounds=rounds,
            with_compiled=with_compiled,
            above_cache=above_cache,
            model=model,
            chart=chart,
            as_json=as_json,
            **plan,  # type: ignore[arg-type]
        )
    )
