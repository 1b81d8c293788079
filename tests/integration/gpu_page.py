"""The blocks of docs/gpu-cluster.md by kind, and the examples as they would lie in the page's namespace."""

import re
from typing import Any

import yaml

from tests.cluster.paths import REPOSITORY

Raw = dict[str, Any]

TEXT = (REPOSITORY / "docs" / "gpu-cluster.md").read_text(encoding="utf-8")
BLOCKS = [(text, yaml.safe_load(text)) for text in re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)]
VALUES: list[Raw] = [block for text, block in BLOCKS if text.startswith("# values.yaml\n")]
SPECS: list[Raw] = [block for _, block in BLOCKS if list(block) == ["spec"]]
MANIFESTS: list[Raw] = [block for _, block in BLOCKS if "apiVersion" in block]
KUEUES = [manifest for manifest in MANIFESTS if manifest["apiVersion"].startswith("kueue.x-k8s.io/")]
KUBERNETES = [manifest for manifest in MANIFESTS if manifest not in KUEUES]

NAMESPACE = "training"
ONE_NODE, TWO_NODES = "rewardfljob-eight-gpus.yaml", "rewardfljob-two-nodes-kueue.yaml"
EXAMPLES = sorted(path.name for path in (REPOSITORY / "examples").glob("rewardfljob-*.yaml"))


def example(name: str = ONE_NODE) -> Raw:
    """An example, in the namespace."""
    body: Raw = yaml.safe_load((REPOSITORY / "examples" / name).read_text(encoding="utf-8"))
    body["metadata"]["namespace"] = NAMESPACE
    return body
