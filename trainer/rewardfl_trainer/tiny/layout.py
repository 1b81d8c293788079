"""Lays the family out on disk as the real one lies: Wan2.2-I2V-A14B, antelopev2, ROLL's list of paths, two datasets.

Weights files carry a sidecar `<name>.config.json`, since DiffSynth's table of hashes does not know toy sizes.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from rewardfl_trainer.tiny import faces, onnx_graph, store
from rewardfl_trainer.tiny.face_networks import Detector, Landmarks, Recogniser
from rewardfl_trainer.tiny.spec import (
    DIT_KWARGS,
    FACE_FOLDER,
    FRAMES_PER_SECOND,
    MODEL_FOLDER,
    TEXT_KWARGS,
    VAE_KWARGS,
)
from rewardfl_trainer.video import write_video

SHARDS: Final = 2
TEXT_FILE: Final = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE: Final = "Wan2.1_VAE.pth"
TOKENIZER: Final = "google/umt5-xxl"
DATASETS: Final = {"dataset": (16, 11), "dataset-eval": (8, 12)}
"""Folder: rows, and the seed of its people. Nobody is in both, and nobody was trained on."""


def write(folder: Path) -> None:
    """Write models, paths and datasets below `folder`; existing files of these names are replaced."""
    models = folder / MODEL_FOLDER
    high, low = _write_dit(models, "high"), _write_dit(models, "low")
    text, vae = models / TEXT_FILE, models / VAE_FILE
    _write_pickle(text, {name: value.bfloat16() for name, value in store.load("text").items()})
    _write_sidecar(text, "wan_video_text_encoder", TEXT_KWARGS)
    _write_pickle(vae, store.load("vae"))
    _write_sidecar(vae, "wan_video_vae", VAE_KWARGS)
    paths = [[str(path.relative_to(folder)) for path in shards] for shards in (high, low)]
    entries = [*paths, str(text.relative_to(folder)), str(vae.relative_to(folder))]
    (folder / "wan22_paths.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    (models / TOKENIZER).mkdir(parents=True, exist_ok=True)
    for name in store.TOKENIZER_FILES:
        shutil.copyfile(store.FOLDER / name, models / TOKENIZER / name)
    write_face_networks(folder / FACE_FOLDER)
    for name, (rows, seed) in DATASETS.items():
        write_dataset(folder / name, rows, seed)


def write_face_networks(folder: Path, weights: Path = store.FOLDER) -> None:
    """Write the three ONNX files of antelopev2."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, tuple[str, Detector | Recogniser | Landmarks]] = {
        "scrfd_10g_bnkps": ("detector", Detector()),
        "glintr100": ("recogniser", Recogniser()),
        "2d106det": ("landmarks", Landmarks()),
    }
    for name, (part, network) in files.items():
        network.load_state_dict(store.load(part, weights))
        onnx_graph.write(network, folder / f"{name}.onnx")


def write_dataset(folder: Path, rows: int, seed: int) -> None:
    """Write `rows` clips and their metadata.csv (columns video, prompt)."""
    clips = dataset_clips(rows, seed)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("video", "prompt"))
        for row in range(rows):
            name = f"videos/person-{row:02d}.mp4"
            write_video(folder / name, clips.video_B3THW[row], FRAMES_PER_SECOND)
            table.writerow((name, faces.prompt(int(clips.motion_B[row]), int(clips.background_B[row]))))


def dataset_clips(rows: int, seed: int) -> faces.Clips:
    """The clips of a dataset with their ground truth: motions and backgrounds take turns."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(rows)
    return faces.render(
        faces.identities(rows, generator),
        generator,
        numbers % len(faces.MOTIONS),
        (numbers + numbers // 4) % len(faces.BACKGROUNDS),
    )


def _write_dit(models: Path, expert: str) -> list[Path]:
    folder = models / f"{expert}_noise_model"
    folder.mkdir(parents=True, exist_ok=True)
    state = list(store.load(f"dit_{expert}").items())
    paths = [folder / f"diffusion_pytorch_model-{number + 1:05d}-of-{SHARDS:05d}.safetensors" for number in range(SHARDS)]
    cut = len(state) // SHARDS
    for path, part in zip(paths, (state[:cut], state[cut:]), strict=True):
        path.write_bytes(save(dict(part), metadata={"format": "pt"}))
    _write_sidecar(paths[0], "wan_video_dit", DIT_KWARGS)
    return paths


def _write_pickle(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors alone, so that `torch.load(weights_only=True)` reads them."""
    torch.save(state, path)


def _write_sidecar(path: Path, model_name: str, arguments: dict[str, Any]) -> None:
    content = {"model_name": model_name, "extra_kwargs": arguments}
    path.with_name(f"{path.name}.config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
