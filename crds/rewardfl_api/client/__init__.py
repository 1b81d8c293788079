"""Reads and writes RewardFLJobs of a cluster: what the command line and Python programs have in common.

`sync.py` has the client and `asynchronous.py` its other form; `jobs.py`, `logs.py` and `history.py` ask the cluster, `results.py`
reads object storage, `submission.py` says what is sent. Only `progress.py` prints. The extra `client` has what they need.
"""
