"""Rewards: frozen networks that say how good a generated video is. `base` is the interface, `face` the first reward."""
