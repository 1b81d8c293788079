"""The seconds of a step are counted by part, once, and in the stream's order on a GPU."""

import time

import pytest
import torch

from rewardfl_trainer.timing import Stopwatch


def test_seconds_are_added_up_by_part_until_they_are_read() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with stopwatch.part("sample"):
            time.sleep(0.02)
    with stopwatch.part("decode"):
        time.sleep(0.01)
    seconds = stopwatch.read()
    assert list(seconds) == ["seconds_sample", "seconds_decode"]
    assert 0.04 <= seconds["seconds_sample"] < 1
    assert 0.01 <= seconds["seconds_decode"] < 1
    assert stopwatch.read() == {}


def test_a_part_that_fails_is_counted_and_its_error_passes() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with pytest.raises(ValueError, match="as it was"), stopwatch.part("reward"):
        raise ValueError("as it was")
    assert list(stopwatch.read()) == ["seconds_reward"]
