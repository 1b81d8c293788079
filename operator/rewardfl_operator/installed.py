"""What `helm test` runs in the cluster: is the operator ready, and does the API server accept a RewardFLJob of this version?

It makes nothing (the job is a dry run) and needs no right but to create RewardFLJobs in one namespace.
"""

import argparse
import asyncio
import sys
from typing import Any

import aiohttp

from rewardfl_api import __version__
from rewardfl_api.job import API_VERSION, KIND

from .cluster import ApiError, Cluster

ANSWER_SECONDS = 10.0
READY_SECONDS = 60.0
PAUSE_SECONDS = 1.0


class NotInstalled(Exception):
    """Something of the installation does not work. Says what, and the remedy."""


def main() -> None:
    """Check, and exit with 1 and one line where something is wrong."""
    parser = argparse.ArgumentParser(description="Check an installed rewardfl operator.")
    parser.add_argument("--operator", default="", help="address of the operator's health port; left out: it is not asked")
    parser.add_argument("--namespace", required=True, help="namespace of the job that is created as a dry run")
    parser.add_argument("--kubeconfig", default=None, help="default: the pod's service account")
    arguments = parser.parse_args()
    try:
        asyncio.run(check(arguments.operator, arguments.namespace, arguments.kubeconfig))
    except NotInstalled as error:
        sys.exit(f"not installed: {error}")


async def check(operator: str, namespace: str, kubeconfig: str | None) -> None:
    """Check the operator at `operator` (not, where that is empty) and the API server.

    Raises:
        NotInstalled: one of them does not do what it should.
    """
    if operator:
        await _wait_until_ready(operator)
        print(f"ok: the operator at {operator} is ready")
    cluster = await Cluster.connect(kubeconfig)
    try:
        await _try_job(cluster, namespace)
    finally:
        await cluster.close()
    print(f"ok: the API server accepts a {KIND} of rewardfl {__version__}")


async def _wait_until_ready(operator: str) -> None:
    """Wait until the operator says that it is ready: `helm test` may follow `helm install` at once."""
    trouble = ""
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    try:
        async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    async with session.get(f"{operator}/readyz") as answer:
                        if answer.ok:
                            return
                        trouble = (await answer.text()).strip()
                except (aiohttp.ClientError, TimeoutError) as error:
                    trouble = str(error) or type(error).__name__
                await asyncio.sleep(PAUSE_SECONDS)
    except TimeoutError as error:
        message = f"{operator}/readyz: {trouble}; see `kubectl logs` of the operator, and networkPolicy.operator of the chart"
        raise NotInstalled(message) from error


async def _try_job(cluster: Cluster, namespace: str) -> None:
    try:
        await cluster.create(example(namespace), dry_run=True)
    except ApiError as error:
        remedy = "is the definition (CRD) that of this version? The chart installs it with crds.enabled=true"
        raise NotInstalled(f"the API server does not accept a {KIND}: {str(error).strip()}; {remedy}") from error


def example(namespace: str) -> dict[str, Any]:
    """Return a small RewardFLJob."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "helm-test", "namespace": namespace},
        "spec": {
            "nodes": 2,
            "gpusPerNode": 8,
            "storage": {"endpoint": "https://s3.example.com", "credentialsSecretName": "s3-credentials"},
            "dataset": "s3://data/faces/",
            "output": "s3://results/helm-test/",
            "training": {
                "modelPaths": ["s3://models/wan22_paths.json"],
                "rewardModelPath": "s3://models/antelopev2/",
                "minTimestepBoundary": 0.9,
            },
        },
    }


if __name__ == "__main__":
    main()
