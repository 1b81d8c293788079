"""The curves of one run or of several, as figures of Plotly. Colours of text and grid are the page's, which knows the theme."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly import graph_objects

from . import curves
from .curves import Series, Spread
from .data import RunData

COLOURS = ("#3f7ee8", "#e07b1f", "#2a9d6a", "#c2459b", "#7a5fd0", "#1699b0", "#b58a00", "#d1495b")
"""Told apart on white and on black, also by most who see fewer colours."""

DIGITS = 6
"""Significant ones; more cannot be seen."""

FAINT, BAND = 0.28, 0.16
"""Opacity of single values behind their running mean, and of a spread."""

HEADROOM = 1.08
"""Upper end of an axis that begins at 0, over the largest value."""

NEVER_NEGATIVE = ("kl", "no_face_fraction", "grad_norm", "seconds_per_step", "peak_memory_gb", "learning_rate")

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A figure with what stands above it."""

    name: str
    title: str
    about: str
    figure: dict[str, Any]


SIMPLE = (
    ("kl", "KL", "distance to the untrained model, before its weight"),
    ("loss", "Loss", ""),
    ("no_face_fraction", "Frames without a face", "part of the generated frames"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("seconds_per_step", "Seconds a step", ""),
    ("peak_memory_gb", "Peak memory", "GB, of the main rank"),
    ("learning_rate", "Learning rate", ""),
)
"""Name, title and explanation of what is a curve of its own."""


def charts(run: RunData) -> list[Chart]:
    """Return the charts of a run; those that have a value."""
    found = [
        _chart("reward", "Reward", "of the videos trained on, and held out", _rewards(run)),
        _chart("rewards", "Rewards one by one", "running means", _each_reward(run)),
    ]
    for name, title, about in SIMPLE:
        if name == "seconds_per_step":
            found.append(_chart("seconds", "Seconds a step, by part", "of the main rank", _parts(run)))
            continue
        traces = _with_mean(curves.series(run.lines, name), title, COLOURS[0])
        if name == "no_face_fraction":
            held_out = curves.series(run.lines, curves.HELD_OUT + name)
            traces += _line(held_out, "held out", COLOURS[1], mode="lines+markers") if held_out else []
        found.append(_chart(name, title, about, traces, limit=run.training.get("max_grad_norm") if name == "grad_norm" else None))
    return [chart for chart in found if chart is not None]


def compared(runs: Sequence[RunData]) -> list[Chart]:
    """Return the charts of several runs: each a colour."""
    named = list(zip(runs, names(runs), colours(len(runs)), strict=True))
    held_out = [trace for run, name, colour in named for trace in _spread(curves.held_out(run), name, colour)]
    reward = [
        trace for run, name, colour in named for trace in _line(curves.series(run.lines, "reward").smoothed(), name, colour)
    ]
    found = [
        _chart("held_out", "Held-out reward", "with the spread over the noises", held_out),
        _chart("reward", "Training reward", "running means", reward),
    ]
    for key, title, about in SIMPLE:
        lines = [trace for run, name, colour in named for trace in _line(curves.series(run.lines, key).smoothed(), name, colour)]
        found.append(_chart(key, title, about, lines))
    return [chart for chart in found if chart is not None]


def names(runs: Sequence[RunData]) -> list[str]:
    """Return what each run is called on a page of several: its name, with a letter where another has the same."""
    letters = [chr(ord("A") + place % 26) for place in range(len(runs))]
    return [f"{letter}: {run.name}" for letter, run in zip(letters, runs, strict=True)]


def colours(count: int) -> list[str]:
    """Return a colour for each of so many runs."""
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _rewards(run: RunData) -> list[Trace]:
    return [
        *_with_mean(curves.series(run.lines, "reward"), "trained rows", COLOURS[0]),
        *_spread(curves.held_out(run), "held-out rows", COLOURS[1]),
    ]


def _each_reward(run: RunData) -> list[Trace]:
    """Return a line for each of several rewards."""
    keys = sorted({name for line in run.lines for name in line.values if name.startswith("reward_")})
    return [
        trace
        for key, colour in zip(keys, COLOURS, strict=False)
        for trace in _line(curves.series(run.lines, key).smoothed(), key.removeprefix("reward_"), colour)
    ]


def _parts(run: RunData) -> list[Trace]:
    """Return the parts of a step on top of each other, and the whole step."""
    found = []
    for (name, part), colour in zip(curves.parts(run.lines).items(), COLOURS, strict=False):
        found += _line(part.smoothed(), name, colour, stackgroup="parts", line={"width": 0.5, "color": colour})
    total = curves.series(run.lines, "seconds_per_step")
    return found + (_line(total, "whole step", "#888888", line={"dash": "dot", "color": "#888888"}) if total else [])


def _with_mean(found: Series, name: str, colour: str) -> list[Trace]:
    """Return the values, faint, and their running mean."""
    smooth = found.smoothed()
    if smooth.values == found.values:
        return _line(found, name, colour)
    faint = _line(found, name, colour, opacity=FAINT, showlegend=False, hoverinfo="skip")
    return [*faint, *_line(smooth, name, colour)]


def _line(found: Series, name: str, colour: str, **options: Any) -> list[Trace]:
    """Return a line; nothing without values."""
    if not found:
        return []
    thin = found.thinned()
    mode = "lines" if len(thin.values) > 1 else "markers"
    known = {"type": "scatter", "mode": mode, "name": name, "line": {"color": colour, "width": 2}, "marker": {"color": colour}}
    return [known | {"x": thin.steps, "y": _rounded(thin.values)} | options]


def _spread(found: Spread, name: str, colour: str) -> list[Trace]:
    """Return the mean with markers where it was measured, and a band where there is a spread."""
    if not found.means:
        return []
    mean = _line(Series(found.steps, found.means), name, colour, mode="lines+markers")
    if found.noises <= 1:
        return mean
    band = {
        "type": "scatter", "mode": "lines", "x": [*found.steps, *reversed(found.steps)],
        "y": _rounded([*found.highest, *reversed(found.lowest)]), "fill": "toself", "fillcolor": _faint(colour),
        "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "name": f"{name}: {found.noises} noises",
    }  # fmt: skip
    return [band, *mean]


def _chart(name: str, title: str, about: str, traces: list[Trace], limit: Any = None) -> Chart | None:
    """Return a chart of traces that Plotly has checked, from 0 on where nothing can be below; None without any."""
    if not traces:
        return None
    limit = limit if isinstance(limit, int | float) and limit > 0 else 0.0
    top = max([limit, *(value for trace in traces for value in trace["y"])])
    range_ = {"range": [0, top * HEADROOM or 1]} if name in NEVER_NEGATIVE else {}
    shown = sum(1 for trace in traces if trace.get("showlegend", True))
    layout: dict[str, Any] = {
        "template": None, "showlegend": shown > 1, "hovermode": "x unified",
        "margin": {"l": 52, "r": 12, "t": 8, "b": 36},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {"title": {"text": "step", "standoff": 4}}, "yaxis": {"automargin": True, **range_},
    }  # fmt: skip
    figure = graph_objects.Figure(data=traces, layout=layout)
    if limit:
        figure.add_hline(y=limit, line={"dash": "dash", "width": 1, "color": "#888888"})
    drawn: dict[str, Any] = figure.to_plotly_json()
    drawn["layout"].pop("template", None)
    return Chart(name, title, about, drawn)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND})"


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
