"""Reads and writes video files with PyAV. Knows nothing of datasets or training.

Shapes: T frames, H W pixels; 3THW and B3THW tensors are RGB in [-1, 1], HW3 arrays are RGB of 8 bits.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frame = NDArray[np.uint8]

WAN_FRAMES_PER_SECOND = 16
"""The rate of Wan2.2's videos."""

ENCODER: Final = "libx264"
"""H.264 with yuv420p in mp4 plays in every browser; PyAV's wheels bundle this encoder."""
ENCODER_OPTIONS = {"crf": "18", "preset": "medium", "mbtree": "0"}
"""Constant quality that looks lossless. With `mbtree` x264 reads memory that it has not set: equal frames give unequal files."""

HALF_RANGE = 127.5
"""Half of the range of a pixel's value."""
QUARTER_TURN_DEGREES = 90


class VideoError(ValueError):
    """A video that cannot be used. The message says why, without naming the file."""


def read_frames(path: Path, num_frames: int) -> Iterator[Frame]:
    """Yield the first `num_frames` frames, upright (rotation metadata applied). Decodes no more than these; audio is ignored.

    Raises:
        VideoError: not a video, damaged, or shorter than `num_frames`.
    """
    count = 0
    try:
        with av.open(str(path)) as container:
            for frame in _decode(container):
                yield frame
                count += 1
                if count == num_frames:
                    return
    except av.error.FFmpegError as error:
        raise VideoError(f"cannot be decoded after {count} frames: {error.strerror}") from error
    raise VideoError(f"has {count} frame{'s' if count != 1 else ''}, {num_frames} are needed")


def _decode(container: av.container.InputContainer) -> Iterator[Frame]:
    """Yield the upright frames of the first video stream."""
    if not container.streams.video:
        raise VideoError("has no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    first_shape = None
    for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise VideoError(f"frame {number} is damaged")
        upright = np.rot90(frame.to_ndarray(format="rgb24"), k=_quarter_turns(frame.rotation))
        first_shape = first_shape or upright.shape
        if upright.shape != first_shape:
            raise VideoError(f"changes its size at frame {number}")
        yield np.ascontiguousarray(upright)


def _quarter_turns(degrees: int) -> int:
    """Return the counter-clockwise quarter turns that `degrees` of rotation metadata (cut to a whole number) ask for."""
    turns = round(degrees / QUARTER_TURN_DEGREES)
    if abs(degrees - turns * QUARTER_TURN_DEGREES) > 1:
        raise VideoError(f"is rotated by {degrees} degrees; only quarter turns are supported")
    return turns


def to_uint8(video_3THW: Tensor) -> NDArray[np.uint8]:
    """Return the frames T H W 3 of a video in [-1, 1] (values beyond are clipped, nan becomes mid-grey)."""
    values = (video_3THW.detach().float().nan_to_num().clamp(-1, 1) + 1) * HALF_RANGE
    frames: NDArray[np.uint8] = values.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    return frames


def from_uint8(frame_HW3: Frame) -> Tensor:
    """Return a frame 3HW in [-1, 1]."""
    return torch.from_numpy(frame_HW3).permute(2, 0, 1).float() / HALF_RANGE - 1


def write_video(path: Path, video_3THW: Tensor, frames_per_second: int = WAN_FRAMES_PER_SECOND) -> None:
    """Write an mp4 that every browser plays; `path` appears only when it is whole. Height and width must be even.

    Raises:
        OSError: the file cannot be written.
    """
    frames = to_uint8(video_3THW)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(ENCODER, rate=frames_per_second, options=ENCODER_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, frames_per_second)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    partial.replace(path)
