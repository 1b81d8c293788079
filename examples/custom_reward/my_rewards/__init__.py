"""Rewards of one's own."""
