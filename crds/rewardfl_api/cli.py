"""The `rewardfl` command line. Commands that need the trainer or a cluster import it when they run, so that help is instant."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from . import __version__

app = typer.Typer(
    help="Reward Feedback Learning of Wan2.2 on Kubernetes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command("tiny-models")
def tiny_models(directory: Annotated[Path, typer.Argument(help="Folder to write into; made if it is missing.")]) -> None:
    """Write the miniature Wan2.2 and face models and an example dataset, for trying everything out on a CPU."""
    try:
        tiny = import_module("rewardfl_trainer.tiny")  # by name: the API itself does not depend on the trainer
    except ImportError as error:
        typer.echo(f"rewardfl tiny-models: {error}; install rewardfl[trainer]", err=True)
        raise typer.Exit(1) from error
    try:
        tiny.write(directory)
    except OSError as error:
        typer.echo(f"rewardfl tiny-models: {directory}: {error.strerror}; name a folder that can be written", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"wrote {directory}")


@app.command()
def explain(reason: Annotated[str, typer.Argument(help="A condition's reason, e.g. NoFaceInFirstFrame.")]) -> None:
    """Say what a condition's reason means and what to do."""
    from .errors import Reason
    from .reasons import EXPLANATIONS

    known = {item.value.lower(): item for item in Reason}
    found = known.get(reason.lower())
    if found is None:
        typer.echo(f"rewardfl explain: {reason!r} is no reason; known are {', '.join(Reason)}", err=True)
        raise typer.Exit(64)
    text = EXPLANATIONS[found]
    typer.echo(f"{found.value}\n  cause:  {text.cause}\n  remedy: {text.remedy or 'nothing has to be done'}")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
