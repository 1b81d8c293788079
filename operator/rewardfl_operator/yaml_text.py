"""Writes objects so that YAML reads what JSON says: the API server takes an apply as YAML only. Pure."""

import json
import re
from typing import Any

Raw = dict[str, Any]

SURROGATES = (0xD800, 0xDFFF)
UNFIT_FOR_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
"""Characters that JSON takes as they are, and YAML refuses or reads as the end of a line."""


def as_yaml(body: Raw) -> str:
    """Return `body` as JSON that is YAML too: an apply is read as YAML, which has no escapes for halves of a character."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return "\\ufffd" if SURROGATES[0] <= code <= SURROGATES[1] else f"\\u{code:04x}"

    return UNFIT_FOR_YAML.sub(escape, json.dumps(body, ensure_ascii=False))
