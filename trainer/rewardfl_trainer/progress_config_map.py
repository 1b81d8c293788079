"""The progress ConfigMap of a job, reached as its pods reach it: with the service account of the pod.

Imported only where a report is really sent, since the kubernetes package takes most of a second to import.
"""

import os
from pathlib import Path

from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.config.incluster_config import InClusterConfigLoader  # type: ignore[attr-defined] # missing in the stubs

from rewardfl_api.progress import PROGRESS_KEY
from rewardfl_api.trainer_config import ProgressTarget

REQUEST_TIMEOUT_SECONDS = (3.05, 5.0)
"""To connect, and to wait for the answer."""


class ProgressConfigMap:
    """One ConfigMap, of which one key is read and patched.

    Args:
        target: which one.
        service_account_dir: folder with `token` (read anew as it is renewed) and `ca.crt`; the server's address comes from
            KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.

    Raises:
        kubernetes.config.ConfigException: this is no pod.
    """

    def __init__(self, target: ProgressTarget, service_account_dir: Path) -> None:
        self._target = target
        configuration = Configuration()
        configuration.retries = 0
        InClusterConfigLoader(
            token_filename=os.fspath(service_account_dir / "token"), cert_filename=os.fspath(service_account_dir / "ca.crt")
        ).load_and_set(configuration)
        self._api = CoreV1Api(ApiClient(configuration))

    def read(self) -> str:
        """Return the document that stands there; an empty text when there is none."""
        found = self._api.read_namespaced_config_map(
            self._target.config_map, self._target.namespace, _request_timeout=REQUEST_TIMEOUT_SECONDS
        )
        return (found.data or {}).get(PROGRESS_KEY, "")

    def write(self, text: str) -> None:
        """Replace the document; nothing else of the ConfigMap is touched."""
        self._api.patch_namespaced_config_map(
            self._target.config_map,
            self._target.namespace,
            {"data": {PROGRESS_KEY: text}},
            _request_timeout=REQUEST_TIMEOUT_SECONDS,
        )
