"""`rewardfl cache`: looks at a folder that models are staged into, makes room in it, and reads it once more.

It runs where the cache is: on the node, or in a pod of the trainer's image that mounts the claim. Everything that it does is the
trainer's `staging.inventory`.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ExitCode
from ..text import duration, plural, size, table
from .app import FILES, app, complain, reporting, stop, trainer
from .listing import as_json, as_yaml

if TYPE_CHECKING:
    from rewardfl_trainer.staging.inventory import Item

INVENTORY = "rewardfl_trainer.staging.inventory"
COLUMNS = ("CONTENT", "SIZE", "LAST USED", "USED BY", "NAMES")
SHOWN_CHARACTERS = 12
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+)([smhdw])")


class Form(StrEnum):
    """Forms of the answer."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


commands = typer.Typer(
    help="Look at a folder that models are staged into (cache.hostPath, or a mounted claim), make room in it, and verify it.",
    no_args_is_help=True,
)
app.add_typer(commands, name="cache", rich_help_panel=FILES)

Folder = Annotated[Path, typer.Option("--dir", help="The cache folder.")]
Output = Annotated[Form, typer.Option("--output", "-o", help="Form of the answer.")]


@commands.command()
def ls(folder: Folder, output: Output = Form.TABLE) -> None:
    """List what is in the cache: size, when it was last used, which running jobs use it, and where it came from."""
    inventory = trainer("cache ls", INVENTORY)
    with reporting("cache ls"):
        items = inventory.items(inventory.open_cache(folder))
    if output is not Form.TABLE:
        _print({"folder": str(folder), "bytes": sum(item.bytes for item in items), "items": _plain(items)}, output)
        return
    shown = [item for item in items if item.bytes or item.kind == "content"]
    if not shown:
        complain("cache ls", f"nothing is staged in {folder}")
        return
    typer.echo(table(COLUMNS, [_cells(item) for item in shown]))
    used = sum(item.bytes for item in shown if item.used_by)
    total = sum(item.bytes for item in shown)
    typer.echo(f"{plural(len(shown), 'content')}, {size(total)}, of which running jobs use {size(used)}")


@commands.command()
def prune(
    folder: Folder,
    max_size: Annotated[str | None, typer.Option(help="Remove until no more than this is left, e.g. 500Gi.")] = None,
    unused_for: Annotated[str | None, typer.Option(help="Remove only what was not used for so long, e.g. 7d.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all that no running job uses.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, say what would be.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """Remove what was not used for longest. What a running job uses is never removed."""
    if everything == bool(max_size or unused_for):
        raise typer.BadParameter("say how much to remove: --max-size, --unused-for or both of them, or --all")
    limit, idle = _bytes(max_size), _seconds(unused_for)
    inventory = trainer("cache prune", INVENTORY)
    with reporting("cache prune"):
        removed = inventory.prune(inventory.open_cache(folder), limit, idle, dry_run=dry_run)
    freed = sum(item.bytes for item in removed)
    if output is not Form.TABLE:
        _print({"folder": str(folder), "dryRun": dry_run, "bytes": freed, "removed": _plain(removed)}, output)
        return
    shown = [item for item in removed if item.bytes or item.kind == "content"]
    if shown:
        typer.echo(table(COLUMNS, [_cells(item) for item in shown]))
    typer.echo(f"{'would remove' if dry_run else 'removed'} {plural(len(shown), 'content')}, {size(freed)}")


@commands.command()
def verify(
    folder: Folder,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is corrupt; the next start fetches it anew.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """Read everything and compare it with its SHA-256. Exits with 74 when anything is not what it was."""
    inventory = trainer("cache verify", INVENTORY)
    with reporting("cache verify"):
        found = inventory.verify(inventory.open_cache(folder), remove=remove)
    if output is not Form.TABLE:
        counts = {"contents": found.contents, "bytes": found.bytes}
        _print({"folder": str(folder), **counts, "corrupt": _plain(found.corrupt), "removed": found.removed}, output)
    else:
        if found.corrupt:
            typer.echo(table(COLUMNS, [_cells(item) for item in found.corrupt]))
        typer.echo(f"verified {plural(found.contents, 'content')}, {size(found.bytes)}: {len(found.corrupt)} corrupt")
    if found.corrupt:
        done = "removed; the next start fetches them" if remove else "remove them with --remove, and check the disk"
        complain("cache verify", f"{plural(len(found.corrupt), 'content')} in {folder} not what they were; {done}")
        stop(int(ExitCode.IO_ERROR))


def _cells(item: "Item") -> tuple[str, ...]:
    name = item.name[:SHOWN_CHARACTERS] if item.kind == "content" else f"({item.kind})"
    names = item.names[0] + (f" and {len(item.names) - 1} more" if len(item.names) > 1 else "") if item.names else ""
    return name, size(item.bytes), f"{duration(item.idle_seconds)} ago", ", ".join(item.used_by), names or item.name


def _plain(items: "list[Item]") -> list[dict[str, Any]]:
    """Return items as programs read them."""
    return [
        {
            "kind": item.kind,
            "name": item.name,
            "bytes": item.bytes,
            "idleSeconds": round(item.idle_seconds, 1),
            "usedBy": list(item.used_by),
            "names": list(item.names),
        }
        for item in items
    ]


def _print(answer: dict[str, Any], form: Form) -> None:
    typer.echo(as_json(answer) if form is Form.JSON else as_yaml(answer))


def _bytes(text: str | None) -> int | None:
    from ..quantities import bytes_of

    try:
        return None if text is None else bytes_of(text)
    except ValueError as error:
        raise typer.BadParameter(f"--max-size {error}") from error


def _seconds(text: str | None) -> float:
    if text is None:
        return 0.0
    if (match := _DURATION.fullmatch(text)) is None:
        raise typer.BadParameter(f"--unused-for {text!r}: must be a number with s, m, h, d or w, e.g. 7d")
    return float(match[1]) * SECONDS[match[2]]
