"""`python -m rewardfl_trainer.tiny DIR` writes the tiny family below DIR."""

import argparse
from pathlib import Path

from rewardfl_trainer.tiny import write


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="python -m rewardfl_trainer.tiny", description="Write the tiny model family below DIR.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    write(parser.parse_args().directory)


if __name__ == "__main__":
    main()
