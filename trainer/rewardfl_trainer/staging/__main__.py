"""`python -m rewardfl_trainer.staging --config FILE`: the init container of every trainer pod."""

# ruff: noqa: E402 - the imports follow what makes them faster

import gc

gc.disable()  # what is imported stays, and looking through it again and again is a tenth of the time until the first byte

import argparse
import logging
import os
import sys
from pathlib import Path

from rewardfl_api.trainer_config import CONFIG_PATH
from rewardfl_trainer import configuration
from rewardfl_trainer.failures import run_main
from rewardfl_trainer.log_tail import TailHandler
from rewardfl_trainer.process_age import leave_staging_time
from rewardfl_trainer.staging.stage import stage

MAY_NOT = 0o002
"""A cache that several users share, they share as a group: its folders can be written to by all of it."""

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(log: TailHandler) -> None:
    """Read the configuration and stage what it names."""
    parser = argparse.ArgumentParser(prog="python -m rewardfl_trainer.staging", description=__doc__)
    parser.add_argument("--config", default=CONFIG_PATH, help="the trainer's configuration file (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=[logging.StreamHandler(), log])
    os.umask(MAY_NOT)
    gc.freeze()
    gc.enable()
    config = configuration.load(arguments.config)
    stage(config)
    leave_staging_time(Path(config.work_dir))


if __name__ == "__main__":
    tail = TailHandler()
    code = run_main(lambda: main(tail), tail)
    sys.stdout.flush()
    sys.stderr.flush()
    # threads that are still waiting for a server must not hold up the end of the pod; every file is whole or not there
    os._exit(code)
