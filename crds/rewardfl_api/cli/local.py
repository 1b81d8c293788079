"""The commands that need no cluster: conversion, estimate, models and LoRA files, explanations."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import __version__
from ..errors import ExitCode, Reason, RewardFLError
from ..parameters import EXPORT_FORMATS
from .app import FILES, app, complain, reporting, trainer


@app.command(rich_help_panel=FILES)
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command("tiny-models", rich_help_panel=FILES)
def tiny_models(directory: Annotated[Path, typer.Argument(help="Folder to write into; made if it is missing.")]) -> None:
    """Write the miniature Wan2.2 and face models and an example dataset, for trying everything out on a CPU."""
    tiny = trainer("tiny-models", "rewardfl_trainer.tiny")
    with reporting("tiny-models"):
        try:
            tiny.write(directory)
        except OSError as error:
            message, hint = f"{directory}: {error.strerror};", "name a folder that can be written."
            raise RewardFLError(Reason.IO_FAILED, message, hint, ExitCode.IO_ERROR) from error
    typer.echo(f"wrote {directory}")


@app.command(rich_help_panel=FILES)
def convert(
    configuration: Annotated[Path, typer.Argument(help="A ROLL configuration, e.g. reward_fl_config.yaml.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. Default: standard output.")] = None,
    compat: Annotated[
        Literal["none", "roll"], typer.Option(help="roll: compute what ROLL computed, mistakes included.")
    ] = "none",
    dataset: Annotated[str | None, typer.Option(help="Folder with metadata.csv and the videos, e.g. s3://data/faces/.")] = None,
    results: Annotated[str | None, typer.Option(help="Folder for the results, e.g. s3://results/faces/.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing and exit with 78 when any key is not kept.")] = False,
) -> None:
    """Convert a ROLL Reward FL configuration to a RewardFLJob. What is not kept is named, on standard error and in the file."""
    from .. import roll

    with reporting("convert"):
        try:
            text = configuration.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            complain("convert", f"{configuration}: {error}")
            raise typer.Exit(ExitCode.MISSING_INPUT) from error
        converted = roll.convert(text, compat=compat, dataset=dataset, output=results)
        for note in converted.notes:
            complain("convert", f"{note}")
        lost = [note.key for note in converted.notes if not note.kept]
        if strict and lost:
            message = f"--strict: {len(lost)} of the keys in {configuration} are not kept, see above."
            hint = "Do what stands beside each, or convert without --strict."
            raise RewardFLError(Reason.BAD_CONFIGURATION, message, hint, ExitCode.BAD_CONFIGURATION)
        if output is None:
            typer.echo(converted.render(), nl=False)
        else:
            output.write_text(converted.render(), encoding="utf-8")


@app.command(rich_help_panel=FILES)
def export(
    lora: Annotated[Path, typer.Argument(help="A trained LoRA, in any layout.")],
    layouts: Annotated[list[str], typer.Option("--format", "-f", help=f"Layout: {', '.join(EXPORT_FORMATS)}. May be repeated.")],
    folder: Annotated[Path | None, typer.Option("--folder", help="Folder to write into. Default: that of the LoRA.")] = None,
) -> None:
    """Write a LoRA in the key layout of DiffSynth, ComfyUI or diffusers."""
    if unknown := [layout for layout in layouts if layout not in EXPORT_FORMATS]:
        complain("export", f"--format {unknown[0]}: unknown; known are {', '.join(EXPORT_FORMATS)}")
        raise typer.Exit(ExitCode.USAGE)
    with reporting("export"):
        for path in trainer("export", "rewardfl_trainer.lora_files").convert_file(lora, layouts, folder):
            typer.echo(f"wrote {path}")


@app.command(rich_help_panel=FILES)
def merge(
    lora: Annotated[Path, typer.Argument(help="A trained LoRA, in any layout.")],
    base: Annotated[str, typer.Argument(help="The DiT it was trained on: file, folder, pattern or comma-separated shards.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, *.safetensors.")],
    scale: Annotated[float, typer.Option(help="Strength of the LoRA.")] = 1.0,
    shard_gb: Annotated[float, typer.Option(help="Larger models are written as shards of this size, in GB.", min=1e-6)] = 10.0,
) -> None:
    """Put a LoRA into its DiT: a full model with the keys and the precision of the base."""
    with reporting("merge"):
        merging = trainer("merge", "rewardfl_trainer.merge")
        merged = merging.merge(lora, base, output, scale=scale, max_shard_bytes=int(shard_gb * 1e9))
        for path in merged.files:
            typer.echo(f"wrote {path}")
        trained_on = f"; the LoRA was trained on {merged.trained_on}, which the base has to be" if merged.trained_on else ""
        typer.echo(f"{merged.layers} layers changed{trained_on}")


@app.command(rich_help_panel=FILES)
def estimate(
    file: Annotated[Path, typer.Option("--file", "-f", help="A RewardFLJob manifest, or the trainer's configuration.")],
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="Form of the report.")] = "text",
    gpus: Annotated[int | None, typer.Option(help="GPUs in all. Default: as the job says; 1 without one.", min=1)] = None,
    tflops: Annotated[float, typer.Option(help="What a GPU really computes in a second, in TFLOP.", min=1e-3)] = 400.0,
) -> None:
    """Say what a job needs: FLOPs a step, memory of a GPU by part, bytes to stage, and which settings fit which GPU."""
    with reporting("estimate"):
        typer.echo(trainer("estimate", "rewardfl_trainer.estimate.command").run(file, output, gpus, tflops))


@app.command(rich_help_panel=FILES)
def explain(reason: Annotated[str, typer.Argument(help="A condition's reason, e.g. NoFaceInFirstFrame.")]) -> None:
    """Say what a condition's reason means and what to do."""
    from ..reasons import EXPLANATIONS

    known = {item.value.lower(): item for item in Reason}
    found = known.get(reason.lower())
    if found is None:
        complain("explain", f"{reason!r} is no reason; known are {', '.join(Reason)}")
        raise typer.Exit(ExitCode.USAGE)
    text = EXPLANATIONS[found]
    typer.echo(f"{found.value}\n  cause:  {text.cause}\n  remedy: {text.remedy or 'nothing has to be done'}")
