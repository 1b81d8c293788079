"""Runs a command and prints its seconds, CPU seconds and peak memory as a last line: `python -S tests/benchmarks/launch.py ...`.

A process of its own, and a small one, because Linux counts into a program's peak that of the process which started it.
"""

import os
import sys
import time

began = time.monotonic()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(pid, 0)
seconds = time.monotonic() - began
print(f"\n{seconds} {used.ru_utime + used.ru_stime} {used.ru_maxrss * 1024}")
sys.exit(os.waitstatus_to_exitcode(status))
