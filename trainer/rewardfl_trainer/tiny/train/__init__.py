"""Trains the tiny family, part by part, from seeds; run once by hand, never by the trainer."""
