"""`python -m rewardfl_api.cli`."""

from . import main

main()
