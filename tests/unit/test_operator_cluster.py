"""What the operator sends to the API server."""

import yaml

from rewardfl_operator.yaml_text import as_yaml

TEXTS = (
    "GLHF! \U0001f3d6\ufe0f",
    "\u00e4\u00f6\u00fc \u4e2d\u6587",
    'a "quoted" \\ud83d\\udc00 \\',
    "\x1b[31m\tred\r\n",
    "\x7f\x85\u2028\u2029\ufeff\ufffe",
)


def test_an_apply_is_yaml_that_holds_every_text_unchanged() -> None:
    assert yaml.safe_load(as_yaml({"texts": list(TEXTS)})) == {"texts": list(TEXTS)}


def test_half_a_character_becomes_the_sign_for_one_that_cannot_be_shown() -> None:
    assert yaml.safe_load(as_yaml({"cut": "a\ud83d"})) == {"cut": "a\ufffd"}
