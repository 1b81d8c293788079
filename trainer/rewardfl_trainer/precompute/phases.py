"""Which results stay the same during a run, and so which networks are needed before training and which while training.

Pure: decides from the parameters and the plan of denoising steps; loads and computes nothing.
"""

from dataclasses import dataclass

from rewardfl_api.training import TrainingParameters

from ..sampling import Plan

CONDITION_NETWORKS = ("text_encoder", "vae")
"""Networks that the condition of a video is made with."""


@dataclass(frozen=True)
class Phases:
    """What the first phase computes, and the networks of each phase, by their names in `trainable_models`."""

    keeps_conditions: bool
    """Conditions are computed beforehand. False: with the networks as they are, on every use."""
    keeps_references: bool
    """The same of what the reward computes from the ground truth."""
    prefix_steps: int
    """Leading denoising steps whose result is computed beforehand; 0: none."""
    prefix_networks: frozenset[str]
    """The DiTs that make those steps."""
    training_networks: frozenset[str]
    """What has to be in memory while training."""
    encodes_in_training: bool
    """Whether the VAE's encoder is among that; the decoder always is."""

    @property
    def keeps_anything(self) -> bool:
        """Whether there is a first phase at all."""
        return self.keeps_conditions or self.keeps_references or self.prefix_steps > 0

    @classmethod
    def of(cls, parameters: TrainingParameters, plan: Plan) -> "Phases":
        """Return what can be kept under these parameters, as far as they do not switch it off."""
        trained = set(parameters.trainable_model_names)
        fixed_condition = trained.isdisjoint(CONDITION_NETWORKS)
        keeps_conditions = parameters.cache_conditions and fixed_condition
        prefix_steps = fixed_steps(plan, trained) if parameters.cache_prefix and fixed_condition else 0
        networks = {*trained, "vae", *plan.experts[prefix_steps:]}
        return cls(
            keeps_conditions=keeps_conditions,
            keeps_references=parameters.cache_references,
            prefix_steps=prefix_steps,
            prefix_networks=frozenset(plan.experts[:prefix_steps]),
            training_networks=frozenset(networks if keeps_conditions else {*networks, *CONDITION_NETWORKS}),
            encodes_in_training=not keeps_conditions,
        )


def fixed_steps(plan: Plan, trained: set[str]) -> int:
    """Return how many leading steps carry no gradient and are made by experts that are not trained."""
    for step, expert in enumerate(plan.experts):
        if expert in trained or step in plan.window:
            return step
    return len(plan.experts)
