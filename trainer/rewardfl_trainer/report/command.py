"""What `rewardfl report` does: finds runs in folders and in the outputs of jobs, and writes one page of them."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig

from .. import configuration
from ..storage import Storage
from .data import load
from .make import Source, page, page_of_several
from .stored import Fetched, Folder, Stored


def run(places: Sequence[str | TrainerConfig], output: Path) -> list[str]:
    """Write the page of one run, or of several, and return what could not be read of them.

    Args:
        places: each a folder with a run's results, the file of a job or of a trainer's configuration, or the configuration.
        output: file to write.

    Raises:
        RewardFLError: a place holds no run (exit code 66), cannot be read, or is not valid (78).
        OSError: the page cannot be written.
    """
    with ExitStack() as scratch:
        sources = [_source(place, Path(scratch.enter_context(tempfile.TemporaryDirectory()))) for place in places]
        text = page(sources[0]) if len(sources) == 1 else page_of_several(sources)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    return [f"{source.run.name}: {line}" for source in sources for line in source.run.unreadable]


def _source(place: str | TrainerConfig, scratch: Path) -> Source:
    """Return the run of a place; what lies in object storage is fetched into `scratch` as it is needed."""
    if isinstance(place, str) and Path(place).is_dir():
        stored: Stored = Folder(Path(place))
        return _checked(stored, Path(place).resolve().name, None, place)
    config = place if isinstance(place, TrainerConfig) else configuration.read(Path(place))[0]
    stored = Fetched(Storage.from_config(config), config.output, scratch)
    return _checked(stored, config.name, config.to_trainer(), config.output)


def _checked(stored: Stored, name: str, config: Mapping[str, Any] | None, where: str) -> Source:
    """Return a run of which there is something."""
    found = load(stored, name, config)
    if not (found.lines or found.before or found.sessions or found.unreadable):
        message = f"{where}: holds neither metrics.jsonl nor samples of a run."
        hint = "Name the folder or the job of a run that has reached its first checkpoint."
        raise RewardFLError(Reason.OBJECT_NOT_FOUND, message, hint, ExitCode.MISSING_INPUT)
    return Source(found, stored)
