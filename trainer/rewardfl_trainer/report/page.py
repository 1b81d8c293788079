"""Puts a page together: one HTML file that holds its charts, videos and scripts, asks no network for anything and may not.

Every name and prompt is the dataset's and hostile: the template escapes all of them, and the page's policy runs no script but the
two whose hashes it names. Decides nothing about what is shown.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from .charts import Chart
from .clips import Clip

ASSETS = Path(__file__).parent / "assets"
MAX_PAGE_BYTES = 20_000_000
MARGIN_BYTES = 500_000
"""For everything in a page but Plotly, the charts and the videos."""

BASE64_GROWTH = 4 / 3


@dataclass(frozen=True)
class Cell:
    """A video of a row, and what its frames scored."""

    label: str
    colour: str
    score: float | None = None
    clip: Clip | None = None
    frame_scores: Sequence[float | None] = ()
    boxes: Sequence[Sequence[float] | None] | None = None
    missing: str = ""
    """Why there is no video."""


@dataclass(frozen=True)
class Card:
    """A row's videos beside each other."""

    title: str
    prompt: str
    cells: list[Cell]
    change: float | None = None
    """How much its mean score has risen."""
    noises: int = 1
    """How many noises that is the mean over; the videos are of the first."""


def render(template: str, values: Mapping[str, Any], cards: Sequence[Card], charts: Sequence[Chart]) -> str:
    """Return the page.

    Args:
        template: its file among the assets.
        values: what the template asks for.
        cards: the videos.
        charts: the curves.
    """
    style = (ASSETS / "style.css").read_text(encoding="utf-8")
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    plotly = plotly_script()
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; img-src data: blob:; "
        "media-src blob:; base-uri 'none'; form-action 'none'"
    )
    clips = [cell.clip for card in cards for cell in card.cells if cell.clip is not None]
    places = {id(clip): place for place, clip in enumerate(clips)}
    data = {
        "charts": {chart.name: chart.figure for chart in charts},
        "clips": [_embedded(clip) for clip in clips],
        "cells": [[_cell(cell, places) for cell in card.cells] for card in cards],
    }
    return (
        environment()
        .get_template(template)
        .render(**values, cards=cards, charts=charts, policy=policy, style=style, script=script, plotly=plotly, data=_json(data))
    )


@cache
def environment() -> Environment:
    """Return Jinja's, which escapes everything that is not said to be safe and knows no undefined name."""
    made = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"signed": _signed, "number": _number, "percent": _percent, "duration": duration, "restarts": restarts}
    return made


def room_for_clips(charts: Sequence[Chart]) -> int:
    """Return how many bytes of videos a page with these charts can hold."""
    drawn = len(_json({chart.name: chart.figure for chart in charts}))
    return int((MAX_PAGE_BYTES - MARGIN_BYTES - len(plotly_script().encode()) - drawn) / BASE64_GROWTH)


@cache
def plotly_script() -> str:
    """Return Plotly as it is embedded."""
    return str(get_plotlyjs())


def duration(seconds: float | None) -> str:
    """Write a duration for people: 45 s, 12.5 min, 3.2 h."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def restarts(count: int) -> str:
    """Write a number of restarts."""
    return f"{count} restart" if count == 1 else f"{count} restarts"


def _cell(cell: Cell, places: Mapping[int, int]) -> dict[str, Any]:
    """Return what the script needs of a cell."""
    clip = cell.clip
    return {
        "clip": None if clip is None else places[id(clip)],
        "colour": cell.colour,
        "frames": max(len(cell.frame_scores), clip.frames if clip else 0),
        "rate": clip.frames_per_second if clip else 1,
        "width": clip.width if clip else 1,
        "height": clip.height if clip else 1,
        "scores": [None if score is None else round(score, 4) for score in cell.frame_scores],
        "boxes": cell.boxes,
    }


def _embedded(clip: Clip) -> str:
    return base64.b64encode(clip.data).decode("ascii")


def _json(content: Any) -> str:
    """Return JSON that can stand in a script element: nothing in it can end that."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
