"""What the issue asks of Wan2.2-I2V-A14B at 480x480x81: counted on its true networks, against the straightforward form."""

from pathlib import Path

import pytest
import yaml

from rewardfl_api.quantities import bytes_of
from rewardfl_trainer.configuration import read
from rewardfl_trainer.estimate.fit import GPU_BYTES, needed_bytes
from rewardfl_trainer.estimate.networks import A14B
from rewardfl_trainer.estimate.reference import a14b
from rewardfl_trainer.estimate.result import Estimator
from rewardfl_trainer.estimate.step import Video

GIGA = 1e9
EXAMPLE = Path("examples/rewardfljob-a14b.yaml")


@pytest.mark.slow
def test_a14b_needs_the_flops_and_the_memory_that_it_may() -> None:
    reference, every, sampled = a14b("reference"), a14b("rewardfl"), a14b("rewardfl", "sampled")
    offload = a14b("rewardfl", offload=True)
    assert every.flops / reference.flops == pytest.approx(0.815, abs=0.002)
    assert sampled.flops / reference.flops == pytest.approx(0.691, abs=0.002)
    assert every.flops / reference.flops < 0.82
    assert sampled.flops / reference.flops < 0.70
    assert every.peak_bytes / GIGA == pytest.approx(68.45, rel=0.01)
    assert every.peak_bytes / GIGA < 76
    assert offload.peak_bytes / GIGA == pytest.approx(45.08, rel=0.01)
    assert offload.peak_bytes / GIGA < 46
    assert reference.peak_bytes / GIGA > 80


@pytest.mark.slow
def test_the_example_for_eight_gpus_fits_those_of_80_gb_and_asks_for_the_cpu_memory_that_it_needs() -> None:
    config, world_size = read(EXAMPLE)
    estimate = Estimator.of(config.training).estimate(config, world_size)
    assert (estimate.models, estimate.world_size, estimate.video) == (A14B, 8, Video(81, 480, 480))
    assert needed_bytes(estimate) < GPU_BYTES[80]
    pod = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    (trainer,) = pod["containers"]
    assert bytes_of(trainer["resources"]["requests"]["memory"]) > 8 * estimate.host_bytes > 250 * GIGA
