"""Samples the videos of a page into the bytes that it may have: fewer rows first, then smaller videos.

Videos are re-encoded only where their files are too large; H.264 again, which every browser plays. Must not import torch.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Final

import av

ENCODER: Final = "libx264"
PIXELS: Final = "yuv420p"
EVEN = 2
"""Width and height are multiples of it, as yuv420p needs."""

KEPT_CLIPS = 64
"""Of what was encoded, how much the pages of one run keep: the videos before training are the same on each."""


@dataclass(frozen=True)
class Clip:
    """A video of the page."""

    data: bytes
    width: int
    """Of the original, which faces are measured in."""
    height: int
    frames: int
    frames_per_second: float
    is_smaller: bool = False
    """Whether it was scaled down."""


@dataclass(frozen=True)
class Rung:
    """A way to make a page smaller."""

    rows: int
    """At most so many rows are shown."""
    longer_side: int | None = None
    """Videos are scaled down to it; None: they stay as they are."""
    quality: int = 28
    """x264's constant rate factor: larger is smaller and coarser."""


LADDER = (
    Rung(8),
    Rung(4),
    Rung(8, 480),
    Rung(4, 480),
    Rung(4, 320, 32),
    Rung(2, 240, 36),
)
"""Tried one after the other until the videos fit."""

MOST_ROWS = max(rung.rows for rung in LADDER)
"""More need not be fetched."""

COMPARED_LADDER = tuple(Rung(rung.rows, rung.longer_side or 480, rung.quality) for rung in LADDER[2:])
"""The same for a page of several runs, which has more videos a row."""


@dataclass(frozen=True)
class Wall:
    """The rows of videos that fit."""

    rows: list[list[Clip | None]]
    """Of each row that is shown its videos, in the order in which they were asked for; None where there is none."""
    note: str = ""
    """What was left out or made smaller, for people."""


def fitted(
    rows: Sequence[Sequence[Path | None]], max_bytes: int, ladder: Sequence[Rung] = LADDER, there: int | None = None
) -> Wall:
    """Return the first rows' videos, at most `max_bytes` of them.

    Args:
        rows: files of each row's videos, the most interesting rows first.
        max_bytes: for all together.
        ladder: what is tried, the best first.
        there: how many rows have videos in all. None: those that are given.
    """
    for rung in ladder:
        shown = [[None if path is None else clip_of(path, rung) for path in row] for row in rows[: rung.rows]]
        if sum(len(clip.data) for row in shown for clip in row if clip is not None) <= max_bytes:
            return Wall(shown, _note(there or len(rows), shown, rung))
    return Wall([], "The videos are left out: they do not fit into a page of this size." if rows else "")


def clip_of(path: Path, rung: Rung) -> Clip | None:
    """Return a video as a rung wants it; None where it cannot be read."""
    try:
        found = path.stat()
        return _clip(path, found.st_mtime_ns, found.st_size, rung.longer_side, rung.quality)
    except (OSError, av.error.FFmpegError, ValueError):
        return None


@lru_cache(maxsize=KEPT_CLIPS)
def _clip(path: Path, _changed: int, _size: int, longer_side: int | None, quality: int) -> Clip:
    """Return a video; asked again for the same file, the same."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height, rate = stream.width, stream.height, stream.average_rate or Fraction(1)
        frames = stream.frames or sum(1 for _ in container.decode(stream))
    if longer_side is None or longer_side >= max(width, height):
        return Clip(path.read_bytes(), width, height, frames, float(rate))
    data = _smaller(path, longer_side / max(width, height), quality)
    return Clip(data, width, height, frames, float(rate), is_smaller=True)


def _smaller(path: Path, scale: float, quality: int) -> bytes:
    """Return a video scaled down and encoded again."""
    buffer = io.BytesIO()
    with av.open(str(path)) as source, av.open(buffer, "w", format="mp4") as target:
        stream = source.streams.video[0]
        rate = stream.average_rate or Fraction(1)
        output = target.add_stream(ENCODER, rate=rate, options={"crf": str(quality), "preset": "medium", "threads": "1"})
        output.width, output.height = _even(stream.width * scale), _even(stream.height * scale)
        output.pix_fmt = PIXELS
        for number, frame in enumerate(source.decode(stream)):
            scaled = frame.reformat(output.width, output.height, PIXELS)
            scaled.pts, scaled.time_base = number, 1 / rate
            target.mux(output.encode(scaled))
        target.mux(output.encode(None))
    return buffer.getvalue()


def _even(size: float) -> int:
    return max(EVEN, round(size / EVEN) * EVEN)


def _note(there: int, shown: Sequence[Sequence[Clip | None]], rung: Rung) -> str:
    """Say what was done to the videos."""
    parts = [f"{len(shown)} of {there} rows are shown, those whose score changed most"] if len(shown) < there else []
    if any(clip is not None and clip.is_smaller for row in shown for clip in row):
        parts.append(f"videos larger than {rung.longer_side} pixels are scaled down to that and encoded again")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}, to keep this page under 20 MB." if text else ""
