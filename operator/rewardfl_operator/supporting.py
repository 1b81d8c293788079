"""Brings about what a job's pods need beside the Kubernetes Job, with as few requests as that takes.

One request makes an object that is missing. Each carries the hash of the manifest that it was made from, and informers know hash,
owner and version of each, so one that is as it should be costs nothing, also after a restart. One that was removed, edited or is
out of date is made or applied again. An object of that name which belongs to somebody else is never touched.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from rewardfl_api.job import RewardFLJob

from . import names, resources
from .cluster import CONFLICT, KINDS, ApiError, Cluster
from .informer import Informer, Key, View
from .refusals import require_ours
from .settings import OperatorSettings

Raw = dict[str, Any]
Part = tuple[str, str]
"""Kind and name of an object."""

OTHERS_MARK = "touched"
"""Set in the copy of an object's metadata when somebody else has written to it as well."""


@dataclass(frozen=True)
class Wanted:
    """What one version of a job's spec asks for, and the hash of each object."""

    version: tuple[str, int]
    """Uid and generation of the RewardFLJob."""
    hashes: dict[Part, str]


class SupportingObjects:
    """Keeps them as they should be.

    Args:
        cluster: the API server.
        settings: what the operator was told.
        informers: copies of the objects, as `stub` makes them.
        progress: copies of the progress ConfigMaps, whole: the trainers write to them.
    """

    def __init__(
        self, cluster: Cluster, settings: OperatorSettings, informers: tuple[Informer, ...], progress: tuple[Informer, ...]
    ) -> None:
        self._cluster, self._settings, self._informers, self._progress = cluster, settings, informers, progress
        self._wanted: dict[Key, Wanted] = {}
        self._good: dict[Key, dict[Part, str]] = {}
        """The version in which each object was found or left as it should be."""

    async def ensure(self, job: RewardFLJob, key: Key) -> None:
        """Make what is missing, and apply again what is not as it should be.

        Raises:
            NameTaken, Blocked: an object of that name belongs to somebody else.
            ApiError: the API server could not, or would not.
        """
        known = self._wanted.get(key)
        version = (job.metadata.uid, job.metadata.generation)
        if known is not None and known.version == version and self._are_good(known.hashes, job, key):
            return
        manifests = resources.supporting_objects(job, self._settings)
        hashes = {_part(manifest): seal(manifest) for manifest in manifests}
        self._wanted[key] = Wanted(version, hashes)
        todo = [manifest for manifest in manifests if not self._is_good(part := _part(manifest), hashes[part], job, key)]
        await _all(self._bring_in_order(group, job, key) for group in _independent(todo))

    def forget(self, key: Key) -> None:
        """Remember nothing more of a job that is gone."""
        self._wanted.pop(key, None)
        self._good.pop(key, None)

    def _are_good(self, hashes: dict[Part, str], job: RewardFLJob, key: Key) -> bool:
        return all(self._is_good(part, hashed, job, key) for part, hashed in hashes.items())

    def _is_good(self, part: Part, hashed: str, job: RewardFLJob, key: Key) -> bool:
        """Whether the object is there and as it was left. Raises NameTaken or Blocked when it is not this job's."""
        seen = self._seen(part, key)
        if seen is None:
            return False
        require_ours(" ".join(part), seen, job)
        metadata = seen["metadata"]
        if (metadata.get("annotations") or {}).get(names.APPLIED_ANNOTATION) != hashed:
            return False
        if OTHERS_MARK not in metadata:
            return True  # A progress ConfigMap: others are meant to write to it.
        good = self._good.setdefault(key, {})
        if part not in good and not metadata[OTHERS_MARK]:
            good[part] = metadata["resourceVersion"]
        return bool(good.get(part) == metadata["resourceVersion"])

    def _seen(self, part: Part, key: Key) -> Raw | None:
        kind, name = part
        found = (informer.get(key, name) for informer in (*self._informers, *self._progress) if informer.kind.kind == kind)
        return next((item for item in found if item is not None), None)

    async def _bring_in_order(self, manifests: list[Raw], job: RewardFLJob, key: Key) -> None:
        for manifest in manifests:
            if self._seen(_part(manifest), key) is None:
                written = await self._create(manifest, job)
            else:
                written = await self._apply(manifest, job)
            self._good.setdefault(key, {})[_part(manifest)] = written["metadata"]["resourceVersion"]
            self._learn(written)

    def _learn(self, written: Raw) -> None:
        """Show what was written at once, so that it is not written again before its informer hears of it."""
        metadata, kind = written["metadata"], written["kind"]
        for informer in self._progress if names.PART_LABEL in metadata["labels"] else self._informers:
            if informer.kind.kind == kind and informer.covers(metadata["namespace"]):
                informer.learn(written)

    async def _create(self, manifest: Raw, job: RewardFLJob) -> Raw:
        """Make an object. One that is there although no informer shows it has lost our labels, or an informer lags behind."""
        try:
            return await self._cluster.create(manifest)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
        return await self._apply(manifest, job)

    async def _apply(self, manifest: Raw, job: RewardFLJob) -> Raw:
        """Apply an object that is there, if it is this job's. An apply that changes nothing is no write."""
        metadata, kind = manifest["metadata"], KINDS[manifest["kind"]]
        live = await self._cluster.get(kind, metadata["namespace"], metadata["name"])
        if live is None:
            return await self._cluster.create(manifest)
        require_ours(" ".join(_part(manifest)), live, job)
        if (change := take_over(live)) is not None:
            await self._cluster.patch(kind, metadata["namespace"], metadata["name"], change)
        return await self._cluster.apply(manifest)


def seal(manifest: Raw) -> str:
    """Write the manifest's hash into its annotations, and return it."""
    hashed = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    manifest["metadata"].setdefault("annotations", {})[names.APPLIED_ANNOTATION] = hashed
    return hashed


def stub(item: Raw) -> Raw:
    """Return what is kept of a supporting object."""
    metadata = item["metadata"]
    hashed = (metadata.get("annotations") or {}).get(names.APPLIED_ANNOTATION)
    owners = [
        {key: owner.get(key) for key in ("kind", "name", "uid", "controller")} for owner in metadata.get("ownerReferences") or []
    ]
    return {
        "metadata": {
            **{key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
            "annotations": {names.APPLIED_ANNOTATION: hashed},
            "ownerReferences": owners,
            OTHERS_MARK: any(entry.get("manager") != names.FIELD_MANAGER for entry in metadata.get("managedFields") or []),
        }
    }


STUBS = View(stub, metadata_only=True)


def take_over(live: Raw) -> Raw | None:
    """Return the patch after which an object that was created is one that was applied; None where there is nothing to do.

    The API server keeps apart what a manager has created and what it has applied. Only from the latter does an apply remove what
    is no longer wanted.
    """
    entries = live["metadata"].get("managedFields") or []
    created = [entry for entry in entries if entry.get("manager") == names.FIELD_MANAGER and entry.get("operation") == "Update"]
    if not created:
        return None
    applied = [{**entry, "operation": "Apply"} if entry in created else entry for entry in entries]
    return {"metadata": {"resourceVersion": live["metadata"]["resourceVersion"], "managedFields": applied}}


def _part(manifest: Raw) -> Part:
    return manifest["kind"], manifest["metadata"]["name"]


def _independent(manifests: list[Raw]) -> list[list[Raw]]:
    """Group what has to stand in order: a RoleBinding may only be made when its Role is there."""
    ordered = [manifest for manifest in manifests if manifest["kind"] in ("Role", "RoleBinding")]
    others = [[manifest] for manifest in manifests if manifest not in ordered]
    return [group for group in (*others, ordered) if group]


async def _all(parts: Iterable[Any]) -> None:
    """Wait for all, whatever becomes of each, and raise what the first that failed has raised."""
    for outcome in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
