"""The dataset: rows of metadata.csv, their videos as tensors, the check before training, and the order of training.

Must not load models (the face check is handed in) and reads nothing outside the dataset's folder.

Shapes: T frames, H W pixels; videos are RGB in [-1, 1].
"""

import csv
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import VIDEO_MULTIPLE
from rewardfl_api.training import TrainingParameters

from .rewards.detection import Faces
from .video import Frame, VideoError, from_uint8, read_frames

METADATA_FILE = "metadata.csv"
COLUMNS = ("video", "prompt")
FORMAT_HINT = (
    f"The dataset is a folder with {METADATA_FILE} (UTF-8, comma separated, a header line with the columns "
    f"{' and '.join(COLUMNS)}) and the videos, named relative to the folder."
)


@dataclass(frozen=True)
class Row:
    """A row of metadata.csv, counted from 0. A row with a problem has no usable video."""

    index: int
    video: Path
    prompt: str
    problem: str = ""

    def __str__(self) -> str:
        """Name the row for people, who count from 1 after the header."""
        return f"row {self.index + 1} ({self.video.name})"


def load_rows(folder: Path) -> list[Row]:
    """Read metadata.csv. What is wrong with single rows stands in `Row.problem`, for `preflight` to report all at once.

    Raises:
        RewardFLError: no metadata.csv, not UTF-8 CSV, a column missing, or no rows (BadDataset, exit code 65).
    """
    path = folder / METADATA_FILE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            if missing := [name for name in COLUMNS if name not in columns]:
                raise _bad_dataset(f"{path}: no column {' and '.join(missing)}; found {', '.join(columns) or 'an empty file'}.")
            reader.fieldnames = columns
            rows = [_row(index, cells, folder) for index, cells in enumerate(reader)]
    except FileNotFoundError as error:
        raise _bad_dataset(f"{path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise _bad_dataset(f"{path}: not UTF-8 text (byte {error.start}).") from error
    except csv.Error as error:
        raise _bad_dataset(f"{path}: after line {reader.line_num}: {error}.") from error
    except OSError as error:
        raise _bad_dataset(f"{path}: cannot be read: {error.strerror}.") from error
    if not rows:
        raise _bad_dataset(f"{path}: has no rows.")
    return rows


def _row(index: int, cells: dict[str | None, str | list[str] | None], folder: Path) -> Row:
    """Read one row; `cells` has None for a cell that is missing, and under None the cells that are too many."""
    name, prompt = cells["video"], cells["prompt"]
    problem = ""
    if not isinstance(name, str) or not isinstance(prompt, str):
        problem = "has fewer cells than the header"
    elif None in cells:
        problem = 'has more cells than the header; put "quotes" around a prompt that contains commas'
    else:
        problem = _path_problem(folder, name)
    return Row(index, folder / str(name or ""), str(prompt or ""), problem)


def _path_problem(folder: Path, name: str) -> str:
    """Say what is wrong with a video's file name; empty when it is a file inside the folder."""
    if not name.strip():
        return "names no video"
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name!r} is not a path inside the dataset's folder"
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{name!r} is a link that leaves the dataset's folder"
    return "" if path.is_file() else f"{name!r}: no such file"


def target_size(height: int, width: int, parameters: TrainingParameters) -> tuple[int, int]:
    """Return the height and width at which a video of this size is trained: multiples of 16 under `max_pixels`."""
    if parameters.height is not None and parameters.width is not None:
        return parameters.height, parameters.width
    shrink = max(1.0, math.sqrt(height * width / parameters.max_pixels))
    new_height, new_width = (
        max(VIDEO_MULTIPLE, int(size / shrink) // VIDEO_MULTIPLE * VIDEO_MULTIPLE) for size in (height, width)
    )
    return new_height, new_width


def fit_frame(frame_HW3: Frame, height: int, width: int) -> Tensor:
    """Scale a frame to cover height x width, keeping its aspect, and cut what protrudes evenly. Returns 3HW."""
    old_height, old_width = frame_HW3.shape[:2]
    scale = max(height / old_height, width / old_width)
    size = max(height, round(old_height * scale)), max(width, round(old_width * scale))
    frame_3HW = from_uint8(frame_HW3)
    if size != (old_height, old_width):
        frame_3HW = functional.interpolate(frame_3HW[None], size, mode="bilinear", antialias=True).squeeze(0)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return frame_3HW[:, top : top + height, left : left + width]


def load_video(path: Path, parameters: TrainingParameters) -> Tensor:
    """Return the video's first `num_frames` frames as 3THW, at the size it is trained at.

    Raises:
        VideoError: not a video, damaged or too short.
    """
    frames = read_frames(path, parameters.num_frames)
    return torch.stack([_fit(frame, parameters) for frame in frames], dim=1)


def _fit(frame_HW3: Frame, parameters: TrainingParameters) -> Tensor:
    """Return a frame as it is trained, 3HW."""
    height, width, _ = frame_HW3.shape
    return fit_frame(frame_HW3, *target_size(height, width, parameters))


@dataclass(frozen=True)
class Sample:
    """A row with its video."""

    row: Row
    video_3THW: Tensor


class VideoDataset(Dataset[Sample]):
    """Rows with their videos, decoded when asked for."""

    def __init__(self, rows: Sequence[Row], parameters: TrainingParameters) -> None:
        self.rows, self.parameters = rows, parameters

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, position: int) -> Sample:
        """Decode the video of the row at `position` (not the row's own index).

        Raises:
            RewardFLError: the row or its video is bad (BadDataset, exit code 65); `preflight` finds these beforehand.
        """
        row = self.rows[position]
        if row.problem:
            raise _bad_dataset(f"{row}: {row.problem}.")
        try:
            return Sample(row, load_video(row.video, self.parameters))
        except VideoError as error:
            raise _bad_dataset(f"{row}: {error}.") from error


class FaceFinder(Protocol):
    """What the check of first frames needs of the face reward."""

    def find_faces(self, frames_F3HW: Tensor) -> Faces:
        """Return the largest face of each frame."""


@dataclass(frozen=True)
class Preflight:
    """The rows that can be trained on, the (height, width) of each, and the rows left out for want of a face."""

    rows: list[Row]
    sizes: list[tuple[int, int]]
    skipped: list[Row]


def preflight(rows: Sequence[Row], parameters: TrainingParameters, face_finder: FaceFinder | None = None) -> Preflight:
    """Decode every video and look for a face in each first frame, before any training.

    Args:
        rows: what `load_rows` returned.
        parameters: num_frames, the size, and `on_missing_face`: `skip` leaves out rows without a face, `fail` refuses them.
        face_finder: the face reward; None looks for no faces.

    Raises:
        RewardFLError: exit code 65, naming every bad row: BadDataset where any file is bad, else NoFaceInFirstFrame.
    """
    result = Preflight([], [], [])
    bad: dict[int, str] = {}
    for row in rows:
        try:
            first_3HW = _check_video(row, parameters)
        except VideoError as error:
            bad[row.index] = f"{row}: {error}"
            continue
        if face_finder is not None and not bool(face_finder.find_faces(first_3HW[None]).found_F.any()):
            result.skipped.append(row)
            continue
        result.rows.append(row)
        result.sizes.append((first_3HW.shape[1], first_3HW.shape[2]))
    _raise_for(bad, result, parameters, len(rows))
    return result


def _check_video(row: Row, parameters: TrainingParameters) -> Tensor:
    """Decode all frames that training needs; return the first as it is trained."""
    if row.problem:
        raise VideoError(row.problem)
    frames = read_frames(row.video, parameters.num_frames)
    first = next(frames)
    for _ in frames:
        pass
    return _fit(first, parameters)


def _raise_for(bad: dict[int, str], result: Preflight, parameters: TrainingParameters, num_rows: int) -> None:
    """Raise the one error that names all that is wrong, if anything is."""
    refused = result.skipped if parameters.on_missing_face == "fail" or not result.rows else []
    bad_rows = bad | {row.index: f"{row}: no face in its first frame" for row in refused}
    texts = [bad_rows[index] for index in sorted(bad_rows)]
    message = "; ".join([f"{len(texts)} of the {num_rows} rows of {METADATA_FILE} cannot be used", *texts]) + "."
    if bad:
        raise _bad_dataset(message)
    if bad_rows:
        remedy = ", or set training.on_missing_face to skip" if result.rows else ""
        hint = f"The face reward needs a face in the first frame: use other videos{remedy}."
        raise RewardFLError(Reason.NO_FACE_IN_FIRST_FRAME, message, hint, ExitCode.BAD_DATA)


def _bad_dataset(message: str) -> RewardFLError:
    """Return the error of a dataset that cannot be used."""
    return RewardFLError(Reason.BAD_DATASET, message, FORMAT_HINT, ExitCode.BAD_DATA)


class MicroBatchSampler:
    """The order in which rows are trained on: reshuffled on every pass, the same at every world size.

    A micro batch holds rows of one shape only. Where a shape's rows, or the micro batches of a pass, do not come out even, the
    first ones of the same pass are used once more, so that every rank takes the same number of whole steps.

    Args:
        sizes: (height, width) of each row, as `preflight` returns them.
        batch_size: rows in a micro batch.
        seed: seed of the shuffling.
        rank, world_size: which share to return: of every `world_size` micro batches in a row, the one at `rank`.
        accumulation: micro batches a rank takes per optimizer step; a pass is a whole number of steps.
        shuffle: False keeps the order of the table on every pass.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.sizes, self.batch_size, self.seed, self.shuffle = list(sizes), batch_size, seed, shuffle
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation

    def __len__(self) -> int:
        """Return the micro batches of this rank in a pass; a multiple of `accumulation`."""
        counts: dict[tuple[int, int], int] = defaultdict(int)
        for size in self.sizes:
            counts[size] += 1
        num_batches = sum(math.ceil(count / self.batch_size) for count in counts.values())
        return math.ceil(num_batches / (self.world_size * self.accumulation)) * self.accumulation

    def batches(self, pass_index: int) -> list[list[int]]:
        """Return this rank's micro batches of a pass: positions into `sizes`."""
        everything = self.global_batches(pass_index)
        padded = [everything[number % len(everything)] for number in range(len(self) * self.world_size)]
        return padded[self.rank :: self.world_size]

    def global_batches(self, pass_index: int) -> list[list[int]]:
        """Return all micro batches of a pass, in order, before they are shared out."""
        generator = random.Random(f"{self.seed}/{pass_index}")  # noqa: S311 (an order, not a secret)
        order = list(range(len(self.sizes)))
        if self.shuffle:
            generator.shuffle(order)
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position in order:
            buckets[self.sizes[position]].append(position)
        batches = [batch for bucket in buckets.values() for batch in self._cut(bucket)]
        if self.shuffle:
            generator.shuffle(batches)
        return batches

    def _cut(self, bucket: list[int]) -> Iterator[list[int]]:
        """Cut a shape's positions into micro batches, filling the last one from the start."""
        for start in range(0, len(bucket), self.batch_size):
            yield [bucket[(start + offset) % len(bucket)] for offset in range(self.batch_size)]
