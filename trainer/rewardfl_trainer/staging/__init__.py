"""Staging: what a configuration names is fetched to local folders before training starts.

In reading order: `sources` (what the configuration names) -> `plan` (which files that is, and where they go) -> `order` (which of
them first) -> `fetch` (get and verify them, into `cache`) -> `staged` (the file that says where everything lies, which `localize`
reads). `remote` is what a kind of storage has to offer; `s3`, `huggingface` and `modelscope` offer it. `meter` counts, for all to
see. `by_hand` is for people. No part may import torch: it starts in a second.
"""

from rewardfl_trainer.staging.staged import localize

__all__ = ["localize"]
