"""What a run will need, counted before anything heavy runs: FLOPs and memory of the trainer's own code on shapes without data.

In reading order: `networks` (the models of a configuration) -> `step` (one training step on them) with `tracker` (which counts)
on `shapes` (what runs without data) -> `count` (from shallow networks to whole ones) -> `engine` (what DeepSpeed adds) ->
`result` (all of it, for a configuration) -> `fit` (settings for common GPUs) -> `report` (text and JSON); `preflight` (before
training), `reference` (the straightforward form, to compare with).
"""
