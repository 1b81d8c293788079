"""The init container must not pay for what only training needs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "diffsynth", "transformers", "deepspeed", "modelscope", "kopf")


@pytest.mark.parametrize(
    "module",
    [
        "rewardfl_trainer.staging.__main__",
        "rewardfl_trainer.staging.huggingface",
        "rewardfl_trainer.staging.modelscope",
        "rewardfl_trainer.progress_config_map",
        "rewardfl_trainer.storage",
    ],
)
def test_staging_imports_nothing_that_only_training_needs(module: str) -> None:
    program = f"import sys, {module}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.strip() == ""


def test_the_package_itself_imports_nothing() -> None:
    program = "import sys\nbefore = set(sys.modules)\nimport rewardfl_trainer\nprint(*sorted(set(sys.modules) - before))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.split() == ["rewardfl_trainer"]
