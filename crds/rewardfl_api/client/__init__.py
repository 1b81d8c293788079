"""Reads and writes RewardFLJobs of a cluster: what the command line and Python programs have in common.

Needs the extra `cli`. Knows nothing of terminals, and prints nothing.
"""
