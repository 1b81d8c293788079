"""Makes the pages: of a run, and of several beside each other. What they show is decided here, how it looks by the template."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import rewardfl_api
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from ..redact import redact
from ..storage import Storage
from . import clips, curves
from .charts import COLOURS, charts, colours, compared, names
from .data import Pair, RunData, Sample, load
from .findings import findings
from .page import Card, Cell, render, restarts, room_for_clips
from .stored import Fetched, Stored
from .times import Times, times_of

SHOWN_CHANGES = 5
"""Rows in each of the two tables."""

BEFORE_COLOUR, AFTER_COLOUR = "#8a94a6", COLOURS[0]


@dataclass(frozen=True)
class Source:
    """A run to be shown, and where its files are."""

    run: RunData
    stored: Stored


def page_of_run(storage: Storage, config: TrainerConfig, folder: Path, *, finished: bool = False) -> str:
    """Return the page of a run that is going on, or has just ended.

    Args:
        storage: of its output.
        config: as the user wrote it.
        folder: local folder of its results; what other pods and earlier starts have made is fetched into it.
        finished: whether all other results are there.
    """
    stored = Fetched(storage, config.output, folder)
    return page(Source(load(stored, config=config.to_trainer(), finished=finished), stored))


def page(source: Source) -> str:
    """Return the page of one run."""
    run, times = source.run, times_of(source.run)
    drawn, pairs = charts(run), run.pairs()
    shown = interesting(pairs)
    files = [[_file(source.stored, sample) for sample in _shown(pair)] for pair in shown[: clips.MOST_ROWS]]
    wall = clips.fitted(files, room_for_clips(drawn), there=len(shown))
    cards = [_card(pair, row) for pair, row in zip(shown, wall.rows, strict=False)]
    values = {
        **_common(), "run": run, "times": times, "status": _status(run), "findings": findings(run, times),
        "tiles": list(_tiles(run, times)), "improved": _changed(pairs, best=True), "worsened": _changed(pairs, best=False),
        "wall_note": wall.note, "parameters": _parameters(run), "facts": list(_facts(run, times)),
    }  # fmt: skip
    return render("run.html.jinja", values, cards, drawn)


def page_of_several(sources: Sequence[Source]) -> str:
    """Return the page that compares runs."""
    runs = [source.run for source in sources]
    drawn = compared(runs)
    rows = _common_rows(sources)
    files = [[_file(stored, sample) for stored, sample in row.samples] for row in rows[: clips.MOST_ROWS]]
    wall = clips.fitted(files, room_for_clips(drawn), clips.COMPARED_LADDER, len(rows))
    labels = ["before", *names(runs)]
    shades = [BEFORE_COLOUR, *colours(len(runs))]
    cards = [
        Card(row.title, row.prompt, [
            _one(label, shade, sample, clip)
            for label, shade, (_, sample), clip in zip(labels, shades, row.samples, found, strict=True)
        ])
        for row, found in zip(rows, wall.rows, strict=False)
    ]  # fmt: skip
    values = {
        **_common(), "runs": list(map(_summary, runs, names(runs), colours(len(runs)))),
        "wall_note": wall.note, "differences": _differences(runs), "run_names": names(runs),
    }  # fmt: skip
    return render("compare.html.jinja", values, cards, drawn)


def interesting(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the rows in the order in which they are worth being seen: most improved and most worsened in turn."""
    groups = [_alternating([pair for pair in pairs if pair.group == group]) for group in ("held out", "trained")]
    return [pair for pair in chain.from_iterable(zip_longest(*groups)) if pair is not None]


def _alternating(pairs: Sequence[Pair]) -> list[Pair]:
    """Return best, worst, second best, second worst, and so on; rows without a video at the end."""
    order = sorted(pairs, key=lambda pair: (not any(_shown(pair)), -(pair.change or 0.0)))
    with_video = [pair for pair in order if any(_shown(pair))]
    half = (len(with_video) + 1) // 2
    turns = zip_longest(with_video[:half], reversed(with_video[half:]))
    return [pair for pair in chain.from_iterable(turns) if pair is not None]


def _shown(pair: Pair) -> tuple[Sample | None, Sample | None]:
    """Return the samples of a row whose videos were written: those of its first noise."""
    before = next((sample for sample in pair.before if sample.file), None)
    return before, next((sample for sample in pair.after if sample.file), None)


def _file(stored: Stored, sample: Sample | None) -> Path | None:
    return stored.path(sample.file) if sample is not None and sample.file else None


def _card(pair: Pair, found: Sequence[clips.Clip | None]) -> Card:
    before, after = _shown(pair)
    cells = [
        _one(label, colour, sample, clip)
        for label, colour, sample, clip in zip(
            ("before", "after"), (BEFORE_COLOUR, AFTER_COLOUR), (before, after), found, strict=True
        )
    ]
    return Card(f"Row {pair.row}, {pair.group}", pair.prompt, cells, pair.change, len(pair.after))


def _one(label: str, colour: str, sample: Sample | None, clip: clips.Clip | None) -> Cell:
    """Return the cell of a sample, or one that says why there is none."""
    if sample is None:
        return Cell(label, colour, missing="not generated yet")
    missing = "" if clip else "the video is not there (yet), or cannot be read"
    return Cell(label, colour, sample.score, clip, sample.frame_scores, sample.boxes, missing)


def _common() -> dict[str, Any]:
    return {"made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "version": rewardfl_api.__version__}


def _status(run: RunData) -> str:
    """Say in a word or two where the run stands."""
    if run.finished:
        return "stopped by its guard" if run.guard is not None and run.guard.step == run.step else "finished"
    if run.sessions and run.sessions[-1].ended:
        return "stopped after a checkpoint"
    return "not finished"


def _tiles(run: RunData, times: Times) -> Iterator[dict[str, Any]]:
    """Yield the numbers at the top."""
    held_out, reward = curves.held_out(run), curves.series(run.lines, "reward")
    if held_out.means:
        yield _tile("Held-out reward", held_out.means[0], held_out.means[-1], "never trained on")
    if reward:
        yield _tile("Training reward", reward.begin(0.1), reward.end(0.1), "first and last tenth of the steps")
    missing = curves.series(run.lines, f"{curves.HELD_OUT}no_face_fraction") or curves.series(run.lines, "no_face_fraction")
    if missing:
        yield {
            "label": "Frames without a face",
            "percent": missing.values[-1],
            "about": f"{missing.values[0]:.0%} at the beginning",
        }
    if times.gpu_hours is not None:
        yield {"label": "GPU-hours", "text": f"{times.gpu_hours:.1f}", "about": times.device}
    if times.total:
        yield {
            "label": "Wall time",
            "duration": times.total,
            "about": restarts(times.restarts) if times.restarts else times.device,
        }
    if times.goodput is not None:
        yield {"label": "Goodput", "percent": times.goodput, "about": "of the time was training"}


def _tile(label: str, before: float, now: float, about: str) -> dict[str, Any]:
    return {"label": label, "value": now, "change": now - before, "about": f"{before:.3f} before; {about}"}


def _changed(pairs: Sequence[Pair], *, best: bool) -> list[Pair]:
    """Return the rows that improved, or worsened, most."""
    moved = [pair for pair in pairs if pair.change is not None and (pair.change > 0 if best else pair.change < 0)]
    return sorted(moved, key=lambda pair: -abs(pair.change or 0.0))[:SHOWN_CHANGES]


def _parameters(run: RunData) -> list[dict[str, Any]]:
    """Return the training parameters, those that differ from their default first."""
    found = [{"name": name, "value": _text(value), "set": _differs(name, value)} for name, value in sorted(run.training.items())]
    return sorted(found, key=lambda parameter: not parameter["set"])


def _differs(name: str, value: Any) -> bool:
    field = TrainingParameters.model_fields.get(str(name))
    return field is None or field.is_required() or field.get_default(call_default_factory=True) != value


def _facts(run: RunData, times: Times) -> Iterator[tuple[str, str]]:
    """Yield what is known of the job beside its parameters."""
    storage = run.config.get("storage")
    shown = {
        "Job": run.name,
        "Dataset": run.config.get("dataset"),
        "Evaluation dataset": run.training.get("eval_dataset"),
        "Output": run.config.get("output"),
        "Storage": storage.get("endpoint") if isinstance(storage, Mapping) else None,
        "Device": times.device,
        "Steps": f"{run.step} of {run.total_steps}" if run.total_steps else run.step,
        "Started": run.sessions[0].started.strftime("%Y-%m-%d %H:%M UTC") if run.sessions else None,
    }
    yield from ((name, _text(value)) for name, value in shown.items() if value not in (None, ""))


def _text(value: Any) -> str:
    """Write a value of the configuration; a secret in it, as in an address with a password, is masked."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return redact(", ".join(value))
    if isinstance(value, list | dict):
        return redact(json.dumps(value, ensure_ascii=False))
    return redact(f"{value:g}" if isinstance(value, float) else str(value))


@dataclass(frozen=True)
class _Row:
    """A row in several runs."""

    title: str
    prompt: str
    samples: list[tuple[Stored, Sample | None]]
    """Before training in the first run that has it, then each run's newest."""
    spread: float


def _common_rows(sources: Sequence[Source]) -> list[_Row]:
    """Return the rows that any run has videos of; those in which the runs differ most first, and those that all have."""
    pairs = [{(pair.group, pair.row): pair for pair in source.run.pairs() if any(_shown(pair))} for source in sources]
    rows = []
    for key in sorted(set(chain.from_iterable(pairs))):
        found = [(source, by_key.get(key)) for source, by_key in zip(sources, pairs, strict=True)]
        first_source, first = next((source, pair) for source, pair in found if pair is not None)
        newest = [(source.stored, _newest(pair)) for source, pair in found]
        scores = [sample.score for _, sample in newest if sample is not None]
        title = f"Row {key[1]}, {key[0]}"
        samples = [(first_source.stored, _shown(first)[0]), *newest]
        rows.append(_Row(title, first.prompt, samples, max(scores) - min(scores) if scores else 0.0))
    return sorted(rows, key=lambda row: (sum(1 for _, sample in row.samples if sample is None), -row.spread))


def _newest(pair: Pair | None) -> Sample | None:
    return None if pair is None else _shown(pair)[1]


def _summary(run: RunData, name: str, colour: str) -> dict[str, Any]:
    """Return a run's line in the table of all."""
    held_out, reward, times = curves.held_out(run), curves.series(run.lines, "reward"), times_of(run)
    return {
        "name": name, "colour": colour, "status": _status(run), "step": run.step,
        "held_out": held_out.means[-1] if held_out.means else None,
        "held_out_change": held_out.means[-1] - held_out.means[0] if held_out.means else None,
        "best": max(held_out.means, default=None), "reward": reward.end(0.1) if reward else None,
        "gpu_hours": times.gpu_hours, "seconds": times.total or None,
        "warnings": [finding.title for finding in findings(run, times) if finding.level == "warning"],
    }  # fmt: skip


def _differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Return the parameters that are not the same in all runs, with each run's value."""
    tables = [{"dataset": run.config.get("dataset")} | dict(run.training) for run in runs]
    every = sorted(set(chain.from_iterable(tables)))
    values = {name: [_text(table.get(name)) for table in tables] for name in every}
    return [(name, found) for name, found in values.items() if len(set(found)) > 1]
