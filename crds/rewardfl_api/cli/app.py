"""What all commands share: the application, the options that name a cluster, and how errors are told.

Every error is one line on standard error and one of the exit codes of the trainer image (`errors.ExitCode`); a mistake in the
arguments is 64, Ctrl-C 130 (which is typer's own doing).
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import ExitCode, RewardFLError
from ..printable import printable

if TYPE_CHECKING:
    from ..client.sync import Client

UsageError: type[Any] = typer.BadParameter.__base__  # type: ignore[assignment] # it has no public name of its own
PLUGIN = "kubectl-rewardfl"
JOBS, FILES = "RewardFLJobs in a cluster", "Files and models"

Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace. Default: that of the context.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Default: the current one.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="File to read instead of $KUBECONFIG or ~/.kube/config.")]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the RewardFLJob.")]


ORDER = (
    "validate",
    "submit",
    "list",
    "watch",
    "logs",
    "describe",
    "download",
    "suspend",
    "resume",
    "delete",
    "report",
    "estimate",
    "stage",
    "cache",
    "convert",
)
"""Of the commands in the help: as they are used, the others after them."""


class OneLineUsage(TyperGroup):
    """Says what is wrong with the arguments in one line, and exits with the documented code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order in which they are used."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **keywords: Any) -> NoReturn:
        """Run a command and leave the process."""
        if Path(sys.argv[0]).name == PLUGIN:
            keywords.setdefault("prog_name", PLUGIN.replace("-", " "))
        try:
            code = super().main(args, *arguments, **{**keywords, "standalone_mode": False})
        except UsageError as error:
            sys.exit(_wrong_usage(error, sys.argv[1:] if args is None else args))
        except typer.Abort:
            sys.exit(int(ExitCode.FAILED))
        sys.exit(code if isinstance(code, int) else int(ExitCode.DONE))


def _wrong_usage(error: Any, arguments: Sequence[str]) -> int:
    """Say what is wrong with the arguments; without any, what there is to choose from."""
    if arguments:
        command = error.ctx.command_path if error.ctx is not None else "rewardfl"
        text = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
        typer.echo(f"{command}: {text}; see {command} --help", err=True)
    else:
        error.show()
    return int(ExitCode.USAGE)


app = typer.Typer(
    cls=OneLineUsage,
    help="Reward Feedback Learning of Wan2.2 on Kubernetes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def reporting(command: str) -> Iterator[None]:
    """Turn an error into one line and its exit code."""
    try:
        yield
    except RewardFLError as error:
        complain(command, str(error))
        raise typer.Exit(int(error.exit_code)) from error
    except BrokenPipeError:
        raise  # the reader of our output has gone, as `head` does; typer ends the program without a word
    except OSError as error:
        complain(command, str(error))
        raise typer.Exit(int(ExitCode.IO_ERROR)) from error


@contextmanager
def cluster(
    command: str,
    kubeconfig: str | None = None,
    context: str | None = None,
    namespace: str | None = None,
    endpoint: str | None = None,
) -> Iterator["Client"]:
    """Give a client of the cluster that is meant, and turn errors into one line and its exit code."""
    with reporting(command):
        try:
            from ..client.errors import ClientError
            from ..client.sync import Client
        except ImportError as error:
            complain(command, f"{error}; install rewardfl[cli]")
            raise typer.Exit(int(ExitCode.FAILED)) from error
        try:
            logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings would stand beside our one line
            yield Client(namespace, context=context, kubeconfig=kubeconfig, endpoint=endpoint)
        except ClientError as error:
            complain(command, str(error))
            raise typer.Exit(int(error.exit_code)) from error


def complain(command: str, text: str) -> None:
    """Write one line to standard error, without anything that a terminal obeys."""
    line = "; ".join(part.strip() for part in printable(text).splitlines() if part.strip())
    typer.echo(f"rewardfl {command}: {line}", err=True)


def trainer(command: str, module: str) -> Any:
    """Import a module of the trainer by name: the API itself does not depend on it."""
    try:
        return import_module(module)
    except ImportError as error:
        complain(command, f"{error}; install rewardfl[trainer]")
        raise typer.Exit(int(ExitCode.FAILED)) from error


def stop(code: int) -> NoReturn:
    """End the command with an exit code; whatever is to be said was said."""
    raise typer.Exit(code)
