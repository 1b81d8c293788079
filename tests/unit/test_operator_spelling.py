"""What the trainer says of its fields reads in a condition as the resource spells them."""

import pytest

from rewardfl_operator.causes import in_resource_spelling


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("training.num_frames=80: must be 4k+1", "training.numFrames=80: must be 4k+1"),
        ("the Secret that storage.credentials_secret_name names", "the Secret that storage.credentialsSecretName names"),
        ("training.model_paths=s3://b/wan22_paths.json", "training.modelPaths=s3://b/wan22_paths.json"),
        ("no field in my_training_videos/a_b.mp4", "no field in my_training_videos/a_b.mp4"),
        ("Lower training.seed or train_batch_size", "Lower training.seed or train_batch_size"),
    ],
)
def test_fields_are_spelt_as_in_the_resource_and_nothing_else_is_touched(said: str, shown: str) -> None:
    assert in_resource_spelling(said) == shown
