"""Trains the tokenizer and the tiny umT5 encoder: from a caption's embedding one can read motion and background.

The embedding that the DiTs see is the mean-free sequence of the encoder itself; the two classifiers here are thrown away.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer, WanTextEncoder
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from rewardfl_trainer.tiny import faces
from rewardfl_trainer.tiny.spec import TEXT_KWARGS, TEXT_TOKENS
from rewardfl_trainer.tiny.train.loop import Budget, minimise

SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
CAPTIONS_PER_STEP = 32


def captions() -> list[tuple[str, int, int]]:
    """Every caption with its motion and background."""
    return [(faces.prompt(m, b), m, b) for m in range(len(faces.MOTIONS)) for b in range(len(faces.BACKGROUNDS))]


def write_tokenizer(folder: Path) -> None:
    """Train a small BPE on the captions and write the files that AutoTokenizer reads."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_KWARGS["vocab"],
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=list(ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text, _, _ in captions()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": TEXT_TOKENS,
        "padding_side": "right",
        **SPECIAL_TOKENS,
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", SPECIAL_TOKENS)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def embed(encoder: WanTextEncoder, tokenizer: HuggingfaceTokenizer, texts: list[str]) -> Tensor:
    """[B, 512, D], zero beyond each prompt's tokens, as DiffSynth's pipeline has it."""
    ids, mask = tokenizer(texts, return_mask=True, add_special_tokens=True)
    hidden: Tensor = encoder(ids, mask)
    masked: Tensor = hidden * mask[..., None].to(hidden.dtype)
    return masked


def train(budget: Budget, seed: int, tokenizer_folder: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Train from scratch; returns the state and the losses."""
    torch.manual_seed(seed)
    encoder = WanTextEncoder(**TEXT_KWARGS)
    tokenizer = HuggingfaceTokenizer(str(tokenizer_folder), seq_len=32, clean="whitespace")
    motion_of, background_of = (nn.Linear(TEXT_KWARGS["dim"], len(names)) for names in (faces.MOTIONS, faces.BACKGROUNDS))
    rows = captions()
    generator = torch.Generator().manual_seed(seed)

    def loss_of_step(step: int) -> Tensor:
        chosen = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:CAPTIONS_PER_STEP].tolist()]
        pooled = embed(encoder, tokenizer, [text for text, _, _ in chosen]).sum(1) / 8
        motion = F.cross_entropy(motion_of(pooled), torch.tensor([m for _, m, _ in chosen]))
        return motion + F.cross_entropy(background_of(pooled), torch.tensor([b for _, _, b in chosen]))

    losses = minimise([*encoder.parameters(), *motion_of.parameters(), *background_of.parameters()], loss_of_step, budget)
    return {name: value.detach() for name, value in encoder.state_dict().items()}, losses
