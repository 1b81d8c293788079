"""What the issue asks of Wan2.2-I2V-A14B at 480x480x81: counted on its true networks, against the straightforward form."""

import pytest

from rewardfl_trainer.estimate.reference import a14b

GIGA = 1e9


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
