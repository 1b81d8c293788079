"""Rewards: frozen modules that say how good a generated video is.

In reading order: `base` (the interface) -> `face` and `temporal` (the two that are here) -> `registry` (from a name to a reward)
-> `composition` (several with weights). The face reward stands on `detection`, `alignment`, `recognition` and `onnx_network`.
"""
