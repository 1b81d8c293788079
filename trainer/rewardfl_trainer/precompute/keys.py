"""The names of precomputed entries: a SHA-256 over everything that goes in, so that whatever changes makes another entry.

That is: content of weights, sidecars, tokenizer and video; prompt; number and size of frames; noise; noise levels and experts;
types; and what computes, which is the versions of libraries and the text of our own modules. Nobody has to remember to raise a
number.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from rewardfl_api.parameters import RewardParameters
from rewardfl_api.training import TrainingParameters

from ..data import Row
from ..models import FoundModels, check_tokenizer
from ..rewards import detection, recognition
from ..rewards.onnx_network import ARCHIVE
from ..rewards.registry import identity
from ..sampling import Plan
from .digests import Digests
from .phases import Phases
from .store import Key, digest_of

FORMAT_VERSION = 1
"""Raised when the tensors of an entry get other names or another meaning."""

CONDITION, REFERENCE, PREFIX = "condition", "reference", "prefix"

LIBRARIES = ("av", "diffsynth", "onnx2torch", "tokenizers", "torch", "torchvision", "transformers")
"""Whose version may change a result."""

MODULES = (
    "conditioning.py",
    "data.py",
    "models.py",
    "preparation.py",
    "rollout.py",
    "sampling.py",
    "video.py",
    "wan_dit.py",
    "wan_vae.py",
    "rewards/*.py",
)
"""Our own modules that results depend on."""

NOT_OF_REFERENCES = (
    "rewards",
    "reward_baseline",
    "reward_scale",
    "reward_weight",
    "kl_weight",
    "kl_steps",
    "missing_face_penalty",
    "on_missing_face",
)
"""Reward parameters that only matter after a reference was computed."""

Inputs = Mapping[str, Any]


class Keys:
    """Names entries.

    Args:
        parameters: the training parameters, all paths being local.
        plan: noise levels and experts.
        phases: how many leading steps a prefix has.
        found: the files of the networks.
        digests: digests of files.
        device_type: what computes: cpu or cuda.
    """

    def __init__(
        self, parameters: TrainingParameters, plan: Plan, phases: Phases, found: FoundModels, digests: Digests, device_type: str
    ) -> None:
        self.parameters, self.plan, self.phases, self.found, self.digests = parameters, plan, phases, found, digests
        self._videos: dict[Path, str] = {}
        self._common = {
            "format": FORMAT_VERSION,
            "code": code_digest(),
            "libraries": {name: version(name) for name in LIBRARIES},
            "device": device_type,
            "dtype": parameters.dtype,
            "compat": parameters.compat,
        }

    def condition(self, row: Row, size: tuple[int, int]) -> Key:
        """Name the condition of a row whose video is trained at `size` (height, width)."""
        networks = {"text_encoder": self._text_encoder, "vae": self._vae, "tokenizer": self._tokenizer}
        inputs = {"prompt": row.prompt, "video": self._video(row, size), "extra_inputs": self.parameters.extra_input_names}
        return self._key(CONDITION, {**networks, **inputs})

    def reference(self, row: Row, size: tuple[int, int]) -> Key:
        """Name what the reward computes from a row's ground truth."""
        settings = self.parameters.model_dump(mode="json", include=set(RewardParameters.model_fields) - set(NOT_OF_REFERENCES))
        settings["rewards"] = self._rewards
        return self._key(REFERENCE, {"video": self._video(row, size), "networks": self._reward, "settings": settings})

    def prefix(self, row: Row, size: tuple[int, int], noise_BCthw: Tensor) -> Key:
        """Name the latents that the leading steps make of `noise_BCthw` (fp32, on the CPU)."""
        steps = self.phases.prefix_steps
        return self._key(
            PREFIX,
            {
                "condition": self.condition(row, size).digest,
                "networks": self._prefix_networks,
                "experts": self.plan.experts[:steps],
                "sigmas": [float(sigma).hex() for sigma in self.plan.schedule.sigmas[: steps + 1]],
                "noise": digest_of({"noise": noise_BCthw}),
            },
        )

    def files(self) -> list[Path]:
        """Return the large files that keys depend on, for several processes to read each one of them."""
        names = {"text_encoder", "vae", *self.phases.prefix_networks} if self._needs_condition else set()
        networks = [file for name in sorted(names) for file in self.found.files(name)]
        return [*networks, *(reward_files(Path(self.parameters.reward_model_path)) if self.phases.keeps_references else [])]

    @property
    def _needs_condition(self) -> bool:
        return self.phases.keeps_conditions or self.phases.prefix_steps > 0

    def _key(self, kind: str, inputs: Inputs) -> Key:
        text = json.dumps({"kind": kind, **self._common, **inputs}, sort_keys=True)
        return Key(kind, hashlib.sha256(text.encode()).hexdigest(), text)

    def _video(self, row: Row, size: tuple[int, int]) -> Inputs:
        """Say which frames a row has: those that decoding so many of this file, at this size, makes."""
        if row.video not in self._videos:
            self._videos[row.video] = self.digests.of(row.video)
        return {"sha256": self._videos[row.video], "num_frames": self.parameters.num_frames, "height_width": size}

    def _network(self, name: str) -> list[str]:
        return [self.digests.of(file) for file in self.found.files(name)]

    @cached_property
    def _text_encoder(self) -> list[str]:
        return self._network("text_encoder")

    @cached_property
    def _vae(self) -> list[str]:
        return self._network("vae")

    @cached_property
    def _prefix_networks(self) -> dict[str, list[str]]:
        return {name: self._network(name) for name in sorted(self.phases.prefix_networks)}

    @cached_property
    def _tokenizer(self) -> dict[str, str]:
        check_tokenizer(self.parameters.tokenizer_path)
        folder = Path(self.parameters.tokenizer_path)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return {file.relative_to(folder).as_posix(): self.digests.of(file) for file in files}

    @cached_property
    def _rewards(self) -> list[str]:
        return [identity(spec) for spec in self.parameters.reward_specs]

    @cached_property
    def _reward(self) -> dict[str, str]:
        folder = Path(self.parameters.reward_model_path)
        return {file.name: self.digests.of(file) for file in reward_files(folder)}


def reward_files(folder: Path) -> list[Path]:
    """Return the face networks' files, as far as they are there, and those beside them that may hold tensors of theirs."""
    places = (folder, folder / Path(ARCHIVE).stem)
    networks = [place / name for place in places for name in (detection.FILE_NAME, recognition.FILE_NAME)]
    found = [file for file in networks if file.is_file()]
    beside = {file for network in found for file in network.parent.iterdir() if file.is_file() and file.suffix != ".onnx"}
    return [*found, *sorted(beside)]


@cache
def code_digest() -> str:
    """Return the SHA-256 over our own modules that results depend on."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for pattern in MODULES:
        for file in sorted(folder.glob(pattern)):
            digest.update(f"{file.name} ".encode() + file.read_bytes())
    return digest.hexdigest()
