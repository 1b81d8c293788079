"""A rank of the distributed training tests: trains every configuration it is given, and writes down what it ends with.

Of each configuration it leaves `<name>-rank<r>.pt`: the losses, the exported weights, and whether each network is bit-identical
to what it was.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewardfl_trainer import configuration, environment
from rewardfl_trainer.engine import ZERO3
from rewardfl_trainer.export import exported
from rewardfl_trainer.models import Models
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.train import train_batch


def main(results: Path, paths: Sequence[Path]) -> None:
    configs = [configuration.load(path) for path in paths]
    environment.prepare(configs[0])
    process = environment.join_process_group(configs[0])
    environment.prepare_logging(process.rank)
    for config in configs:
        run = assemble(config, process)
        models = run.feedback.rollout.models
        before = {name: frozen_state(network) for name, network in models.networks().items()}
        trained = {name: parameter.detach().clone() for name, parameter in run.trainable.parameters()}
        outcomes, steps = [], []
        for batch in run.order.batches():
            batch_outcomes, report = train_batch(run, batch)
            outcomes += batch_outcomes
            steps.append(report)
        content = summary(run, models, before, outcomes, steps)
        content["held_out"] = run.evaluation.measure(run.order.total_steps)
        content["moved"] = {name: not torch.equal(p, trained[name]) for name, p in run.trainable.parameters()}
        torch.save(content, results / f"{config.name}-rank{process.rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def frozen_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the parameters and buffers that are not trained, whole."""
    from deepspeed.runtime.zero import GatheredParameters

    named = [*network.named_parameters(), *network.named_buffers()]
    partitioned = [value for _, value in named if hasattr(value, "ds_id")]
    with GatheredParameters(partitioned, enabled=bool(partitioned)):
        return {name: value.detach().clone() for name, value in named if not value.requires_grad}


def summary(run: Run, models: Models, before: Any, outcomes: list[Any], steps: list[Any]) -> dict[str, Any]:
    after = {name: frozen_state(network) for name, network in models.networks().items()}
    unchanged = {
        name: state.keys() == after[name].keys() and all(torch.equal(value, after[name][key]) for key, value in state.items())
        for name, state in before.items()
    }
    weights = exported(run.trainable, run.config.training, partitioned=run.engine.zero_stage == ZERO3)
    return {
        "losses": [outcome.loss for outcome in outcomes],
        "rewards": [outcome.reward for outcome in outcomes],
        "norms": [report.gradient_norm for report in steps],
        "applied": [report.applied for report in steps],
        "weights": weights,
        "unchanged": unchanged,
        "frozen_tensors": {name: len(state) for name, state in before.items()},
    }
