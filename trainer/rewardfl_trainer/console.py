"""What a person at a terminal sees of training: a bar. In a pod's log, which is no terminal, there is a line a step instead."""

import logging
import math
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

SHOWN = ("reward", "loss", "kl", "grad_norm", "seconds_per_step", "peak_memory_gb")
"""The metrics of a line."""

logger = logging.getLogger("rewardfl_trainer.train")


class Console:
    """Shows the steps of a run on its main rank.

    Args:
        total: steps of the run.
        done: steps made before this start.
        is_main: whether to show anything.
        stream: where to; a bar when it is a terminal.
    """

    def __init__(self, total: int, done: int, *, is_main: bool, stream: TextIO = sys.stderr) -> None:
        self.total = total
        hidden = not is_main or not stream.isatty()
        self._bar = tqdm(total=total, initial=done, unit="step", file=stream, dynamic_ncols=True, disable=hidden)

    def step(self, step: int, values: Mapping[str, float], *, logged: bool) -> None:
        """Show a step that is done; `logged` says whether it gets a line of its own."""
        shown = {name: f"{values[name]:.4g}" for name in SHOWN if math.isfinite(values[name])}
        if not self._bar.disable:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update()
        elif logged:
            logger.info("step %d/%d %s", step, self.total, " ".join(f"{name} {text}" for name, text in shown.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
