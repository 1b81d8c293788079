"""What training starts from, computed once and kept on disk: conditions, references, and latents after the frozen leading steps.

In reading order: `phases` (what can be kept, and which networks each phase needs) -> `keys` (what an entry is named by, with
`digests` of files) -> `store` (entries on disk) -> `entries` (get, or make and keep) -> `fill` (the first phase, shared out over
ranks). `preparation.py` is the one place that training, samples and evaluation ask.
"""
