"""The loop every part shares: seeded AdamW with warm-up and cosine decay, bounded by steps and by minutes.

It knows nothing of what is trained: a part gives it parameters and a loss function.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

LossOfStep = Callable[[int], Tensor]


@dataclass(frozen=True)
class Budget:
    """How long and how fast a part is trained."""

    steps: int
    learning_rate: float
    minutes: float = 1e9
    warmup_steps: int = 20
    report_every: int = 50
    average_decay: float = 0.0


def minimise(parameters: Iterable[Parameter], loss_of_step: LossOfStep, budget: Budget) -> list[float]:
    """Minimise `loss_of_step` and return the loss of every step.

    The cosine follows whichever of steps and minutes is nearer its end. With `average_decay`, the parameters end as their
    exponential moving average.
    """
    trained: list[Tensor] = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=budget.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    average = [parameter.detach().clone() for parameter in trained]
    losses: list[float] = []
    start = time.monotonic()
    for step in range(budget.steps):
        done = max(step / budget.steps, (time.monotonic() - start) / 60 / budget.minutes)
        if done >= 1:
            break
        rate = (
            budget.learning_rate
            * min(1.0, (step + 1) / budget.warmup_steps)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        decay = min(budget.average_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in trained], 1 - decay)
        losses.append(float(loss.detach()))
        if step % budget.report_every == 0:
            recent = losses[-budget.report_every :]
            print(
                f"step {step} loss {sum(recent) / len(recent):.4f} {time.monotonic() - start:.0f}s", file=sys.stderr, flush=True
            )
    if budget.average_decay > 0:
        with torch.no_grad():
            torch._foreach_copy_(trained, average)
    return losses
