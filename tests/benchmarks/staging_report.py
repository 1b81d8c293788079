"""The page of `make bench-staging`, as Markdown."""

from collections.abc import Mapping
from typing import Any

PAGE = """# Staging, measured

Made by `make bench-staging` on {date} ({cores} cores for client and server together; {versions}). A SeaweedFS on the same
machine; {rounds} rounds, every contestant once in each, each into a folder of its own on the same disk. Every contestant is a
process of its own, from its start to its end: Python's start and the imports ({start_seconds:.2f} s) are in our figures. Medians;
in brackets the slowest and the fastest round.

{tables}
Ours is what the init container of a pod runs: SHA-256 of every file, the checksums that the server keeps, every file flushed to
the disk (fsync), range map and records of the cache included. s5cmd and boto3 verify nothing and flush nothing, so what they have
fetched is lost in a power cut; the line with sync is s5cmd followed by `sync -f`. `cp` copies the same files from one folder to
another. CPU time is that of the contestant alone (user and system, from the kernel), a GB is 10^9 bytes; SHA-256 is the CPU time
of the hashing inside it; the server's own was 0.8 s a GB of the large set when this was written. Hashing has no core to itself
here: server, client and SHA-256 share {cores}, and the line without SHA-256 (which no user can have) shows what that costs. What
the runs have fetched of the small set is removed only at the end: ext4 searches long for inodes while many were deleted within
the last minutes.

| | measured | wanted |
|---|---|---|
| throughput of ours to s5cmd, large set | {large_vs_s5cmd:.2f} | 1.0 |
| the same, small set | {small_vs_s5cmd:.2f} | 1.0 |
| throughput of ours to boto3, large set | {large_vs_boto3:.2f} | 2.5 |
| CPU of ours without SHA-256 to s5cmd, large set | {cpu_vs_s5cmd:.2f} | 1.5 |
| the same, small set | {cpu_small_vs_s5cmd:.2f} | 1.5 |
| most resident memory of ours | {peak_rss_mb:.0f} MB | 500 MB |
| warm start: the whole program when everything is in the cache | {warm_start_seconds:.2f} s | 2 s |
"""

TABLE = """## {title}

| | MB/s | seconds | CPU s a GB | of that SHA-256 | peak MB |
|---|---|---|---|---|---|
{rows}
"""


def page(numbers: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return the page."""
    tables = "\n".join(TABLE.format(title=title, rows=_rows(numbers["sets"][name])) for name, title in titles.items())
    versions = ", ".join(f"{name} {text}" for name, text in numbers["versions"].items())
    return PAGE.format(**{**numbers, "tables": tables, "versions": versions})


def _rows(contestants: Mapping[str, Mapping[str, float]]) -> str:
    return "\n".join(
        f"| {name} | {found['mb_per_second']:.0f} ({found['slowest']:.0f} to {found['fastest']:.0f}) | {found['seconds']:.2f} | "
        f"{found['cpu_seconds_a_gb']:.2f} | {found['sha256_seconds_a_gb']:.2f} | {found['peak_mb']:.0f} |"
        for name, found in contestants.items()
    )
