"""The forward passes agree with DiffSynth's own, where DiffSynth is right, and are exact where it rounds."""

import copy

import pytest
import torch
from diffsynth.models import wan_video_dit
from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d
from diffsynth.pipelines.wan_video import (
    WanVideoPipeline,
    WanVideoUnit_ImageEmbedderVAE,
    WanVideoUnit_PromptEmbedder,
    model_fn_wan_video,
)
from PIL import Image
from torch import Tensor

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_trainer.compat import Tiles
from rewardfl_trainer.conditioning import Conditioner
from rewardfl_trainer.estimate.tracker import Tracker
from rewardfl_trainer.memory import Checkpointing
from rewardfl_trainer.models import Models
from rewardfl_trainer.wan_dit import TIME_MODULES, keep_attention_exact, predict_velocity
from rewardfl_trainer.wan_vae import decode, encode, latent_shape
from tests.unit.small_networks import TEXT_ARGUMENTS, random, small_dit, small_text_encoder, small_vae

CPU = torch.device("cpu")
CONTEXT_SHAPE = (1, 512, TEXT_ARGUMENTS["dim"])
KEPT = Checkpointing(enabled=False)
RECOMPUTED = Checkpointing(enabled=True)
OFFLOADED = Checkpointing(enabled=True, offload=True)
IN_PAIRS = Checkpointing(enabled=True, blocks=2)
IN_ONE = Checkpointing(enabled=True, blocks=7)
ATTENTION_KEPT = Checkpointing(enabled=True, attention_every=1)


def dit_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        random(*shape, seed=seed).to(dtype) for seed, shape in enumerate([(1, 16, 3, 8, 6), CONTEXT_SHAPE, (1, 20, 3, 8, 6)])
    )  # type: ignore[return-value]


def test_the_velocity_is_diffsynths() -> None:
    dit, (latents, context, image) = small_dit(), dit_inputs()
    timestep = torch.tensor([937.5])
    expected = model_fn_wan_video(dit, latents=latents, timestep=timestep, context=context, y=image)
    torch.testing.assert_close(predict_velocity(dit, latents, timestep, context, image), expected)


def bf16_dit() -> torch.nn.Module:
    """A DiT as `models` loads it: everything in bf16 but the time layers."""
    dit = small_dit().to(torch.bfloat16)
    for name in TIME_MODULES:
        getattr(dit, name).float()
    return dit


def test_timestep_937_5_is_not_rounded_to_936_under_bf16() -> None:
    dit, (latents, context, image) = bf16_dit(), dit_inputs(torch.bfloat16)
    seen: list[Tensor] = []
    dit.time_embedding.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    predict_velocity(dit, latents, torch.tensor([937.5]), context, image)
    exact = sinusoidal_embedding_1d(dit.freq_dim, torch.tensor([937.5], dtype=torch.float64))
    rounded = sinusoidal_embedding_1d(dit.freq_dim, torch.tensor([937.5]).bfloat16().double())
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0].double(), exact, rtol=0, atol=1e-6)
    assert float((exact - rounded).abs().max()) > 0.5


def test_under_bf16_the_velocity_is_bf16_and_near_the_fp32_one() -> None:
    latents, context, image = dit_inputs(torch.bfloat16)
    velocity = predict_velocity(bf16_dit(), latents, torch.tensor([750.0]), context, image)
    expected = predict_velocity(small_dit(), latents.float(), torch.tensor([750.0]), context.float(), image.float())
    assert velocity.dtype == torch.bfloat16
    torch.testing.assert_close(velocity.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("checkpointing", [RECOMPUTED, OFFLOADED, IN_PAIRS, IN_ONE, ATTENTION_KEPT])
def test_checkpointing_changes_neither_velocity_nor_gradient(checkpointing: Checkpointing) -> None:
    results = []
    for how in (KEPT, checkpointing):
        dit, (latents, context, image) = small_dit().requires_grad_(True), dit_inputs()
        velocity = predict_velocity(dit, latents, torch.tensor([500.0]), context, image, how)
        velocity.square().mean().backward()
        results.append([velocity.detach(), *(parameter.grad for parameter in dit.parameters() if parameter.grad is not None)])
    assert len(results[0]) > 30
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_attention_without_a_gradient_is_not_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    dit, (latents, context, image) = small_dit(), dit_inputs()
    expected = predict_velocity(dit, latents, torch.tensor([500.0]), context, image)
    monkeypatch.setattr(wan_video_dit, "SAGE_ATTN_AVAILABLE", True)
    monkeypatch.setattr(wan_video_dit, "sageattn", lambda q, k, v: torch.zeros_like(q), raising=False)
    assert not torch.equal(predict_velocity(dit, latents, torch.tensor([500.0]), context, image), expected)
    keep_attention_exact()
    assert torch.equal(predict_velocity(dit, latents, torch.tensor([500.0]), context, image), expected)


def kept_inputs(blocks: int) -> int:
    """How many tensors of a block's input are kept for the backward pass."""
    dit, (latents, context, image) = small_dit(), dit_inputs()
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)), lambda nothing: nothing):
        how = Checkpointing(enabled=True, blocks=blocks)
        predict_velocity(dit, latents.requires_grad_(), torch.tensor([500.0]), context, image, how)
    return kept.count((1, 3 * 4 * 3, dit.dim))


def test_blocks_that_share_a_checkpoint_keep_its_input_once() -> None:
    assert kept_inputs(blocks=1) == kept_inputs(blocks=2) + 1


def recomputed_flops(attention_every: int) -> float:
    dit, (latents, context, image) = small_dit(), dit_inputs()
    how = Checkpointing(enabled=True, attention_every=attention_every)
    velocity = predict_velocity(dit, latents.requires_grad_(), torch.tensor([500.0]), context, image, how)
    with Tracker("dit") as tracker:
        velocity.sum().backward()
    return tracker.flops["dit", "recompute"]


@pytest.mark.parametrize(("every", "kept"), [(1, 2), (2, 1), (7, 1)])
def test_kept_attention_is_not_computed_again(every: int, kept: int) -> None:
    tokens, width = 3 * 8 * 6 // 4, small_dit().dim
    assert recomputed_flops(0) - recomputed_flops(every) == kept * 2 * 2 * tokens**2 * width


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_the_decoded_video_is_diffsynths(num_frames: int) -> None:
    vae, latents = small_vae(), random(*latent_shape(num_frames, 32, 48))
    assert torch.equal(decode(vae, latents), vae.decode(latents, device="cpu"))
    assert decode(vae, latents).shape == (1, 3, num_frames, 32, 48)


def test_encoding_is_diffsynths() -> None:
    vae, video = small_vae(), random(1, 3, 9, 32, 48).clamp(-1, 1)
    assert torch.equal(encode(vae, video), vae.encode(video, device="cpu"))


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (10, 14), (6, 17)])
def test_the_video_decoded_in_tiles_is_diffsynths(size: tuple[int, int]) -> None:
    vae, latents = small_vae(), random(1, 16, 2, *size)
    expected = vae.tiled_decode(latents, "cpu", (6, 7), (3, 4))
    found = decode(vae, latents, tiles=Tiles(size=(6, 7), stride=(3, 4)))
    torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [RECOMPUTED, OFFLOADED])
def test_the_decoders_gradient_is_that_of_the_whole_graph(checkpointing: Checkpointing) -> None:
    weights = random(1, 3, 9, 32, 32, seed=7)
    gradients = []
    for how in (None, checkpointing):
        vae, latents = small_vae(), (0.1 * random(*latent_shape(9, 32, 32))).requires_grad_(True)
        video = vae.model.decode(latents, vae.scale).clamp(-1, 1) if how is None else decode(vae, latents, how)
        (video * weights).sum().backward()
        gradients.append(latents.grad)
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


class WordTokenizer:
    """Words to numbers, in the form of DiffSynth's tokenizer."""

    def __call__(self, prompt: str, return_mask: bool, add_special_tokens: bool) -> tuple[Tensor, Tensor]:
        assert return_mask
        assert add_special_tokens
        ids = torch.zeros(1, 512, dtype=torch.long)
        words = [sum(map(ord, word)) % 63 + 1 for word in prompt.split()]
        ids[0, : len(words)] = torch.tensor(words, dtype=torch.long)
        return ids, (ids > 0).long()


def small_models() -> Models:
    return Models(small_dit(), small_dit(1), small_text_encoder(), small_vae(), WordTokenizer())  # type: ignore[arg-type]


def small_pipeline(models: Models) -> WanVideoPipeline:
    pipeline = WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipeline.dit, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer = (
        models.dit,
        models.vae,
        models.text_encoder,
        models.tokenizer,
    )
    pipeline.load_models_to_device = lambda _names: None
    return pipeline


def picture(video_3THW: Tensor, frame: int) -> Image.Image:
    return Image.fromarray(((video_3THW[:, frame] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("inputs", [("input_image",), ("input_image", "end_image")])
def test_the_image_condition_is_diffsynths(inputs: tuple[str, ...]) -> None:
    models = small_models()
    video = (random(3, 9, 32, 48).mul(50).round().clamp(-127, 127) + 0.5) / 127.5
    last = picture(video, -1) if "end_image" in inputs else None
    unit = WanVideoUnit_ImageEmbedderVAE()
    expected = unit.process(small_pipeline(models), picture(video, 0), last, 9, 32, 48, False, None, None)["y"]
    condition = Conditioner(models, inputs, torch.float32, CPU)("a face", video)
    assert condition.image_BCthw is not None
    torch.testing.assert_close(condition.image_BCthw, expected, rtol=0, atol=2e-2)
    assert torch.equal(condition.image_BCthw[:, :4], expected[:, :4])


def test_end_image_conditions_on_the_last_frame_and_input_image_alone_does_not() -> None:
    models = small_models()
    video = random(3, 9, 32, 48).clamp(-1, 1)
    other = video.clone()
    other[:, -1] *= -1
    images = {}
    for inputs in (("input_image",), ("input_image", "end_image")):
        conditioner = Conditioner(models, inputs, torch.float32, CPU)
        images[inputs] = [conditioner.image(one) for one in (video, other)]
    (first, unmoved), (both, moved) = images.values()
    assert torch.equal(first, unmoved)
    assert torch.equal(both[:, :4], moved[:, :4])
    assert not torch.allclose(both[:, 4:], moved[:, 4:], atol=1e-3)
    # Mask channels of the three latent frames: the first frame stands for a whole one, the last is one of four.
    assert first[0, :4, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert both[0, :4, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_input_image_conditions_on_the_first_frame() -> None:
    video = random(3, 9, 32, 48).clamp(-1, 1)
    other = video.clone()
    other[:, 0] *= -1
    conditioner = Conditioner(small_models(), ("input_image",), torch.float32, CPU)
    first, second = conditioner.image(video), conditioner.image(other)
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.allclose(first[:, 4:], second[:, 4:], atol=1e-3)


def test_the_prompts_embedding_is_diffsynths_and_zero_beyond_its_words() -> None:
    models = small_models()
    expected = WanVideoUnit_PromptEmbedder().encode_prompt(small_pipeline(models), "one two three")
    context = Conditioner(models, ("input_image",), torch.float32, CPU).text("one two three")
    torch.testing.assert_close(context, expected)
    assert bool((context[:, 3:] == 0).all())
    assert bool((context[:, :3] != 0).any(dim=-1).all())


@pytest.mark.parametrize("inputs", [(), ("end_image",)])
def test_an_image_model_without_its_first_frame_is_refused(inputs: tuple[str, ...]) -> None:
    with pytest.raises(RewardFLError, match=r"training\.extra_inputs.*needs input_image") as caught:
        Conditioner(small_models(), inputs, torch.float32, CPU)
    assert caught.value.reason == Reason.BAD_CONFIGURATION


def test_a_text_model_with_an_image_is_refused() -> None:
    models = copy.copy(small_models())
    models.dit.in_dim = 16
    with pytest.raises(RewardFLError, match="takes no image"):
        Conditioner(models, ("input_image",), torch.float32, CPU)
