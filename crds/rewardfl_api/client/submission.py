"""What may be submitted, and what is sent of it: a model, a manifest, a file or its text, or a job that was read.

Everything is checked before anything is sent: each field that is wrong is told with its value and what to do.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import manifests
from ..checked import Checked, check_all
from ..job import API_VERSION, KIND, RewardFLJob
from ..schema import Problem
from .errors import InvalidJobError
from .view import Job, Raw

Submittable = RewardFLJob | Mapping[str, Any] | Job | Path | str
"""A model; a manifest; a job of a cluster, to be run again; a file, or the text of one."""

GIVEN = "the job"
"""What a job is called in messages that came from no file."""


def body(
    given: Submittable,
    *,
    name: str | None = None,
    namespace: str | None = None,
    output: str | None = None,
    suspend: bool = False,
) -> Raw:
    """Return the manifest that is to be sent.

    Args:
        given: where it is.
        name: another name than the manifest's.
        namespace: another namespace.
        output: another output.
        suspend: let it begin suspended.

    Raises:
        InvalidJobError: it is wrong, or there is none, or several.
        RewardFLError: the file cannot be read (exit code 66).
    """

    def changed(body: Raw) -> Raw:
        manifest = copy.deepcopy(body)
        metadata = manifest.setdefault("metadata", {})
        if isinstance(metadata, dict):
            metadata.update({key: value for key, value in (("name", name), ("namespace", namespace)) if value is not None})
        if output is not None and isinstance(manifest.get("spec"), dict):
            manifest["spec"]["output"] = output
        if suspend and isinstance(manifest.get("spec"), dict):
            manifest["spec"]["runPolicy"] = {**(manifest["spec"].get("runPolicy") or {}), "suspend": True}
        return manifest

    found, others = check_all(_documents(given), changed)
    for other in others:
        what = f"{other.file}, document {other.number}: a {other.body['kind']}, no RewardFLJob"
        raise InvalidJobError(what, "create it with kubectl apply")
    where = given if _is_file(given) else "the text"
    if not found:
        raise InvalidJobError(f"no RewardFLJob in {where}", f"begin with kind: {KIND}")
    if len(found) > 1:
        raise InvalidJobError(f"{where} holds {len(found)} RewardFLJobs", "submit them one by one")
    if problems := found[0].problems:
        raise InvalidJobError("; ".join(_lines(found[0])), problems=tuple(problems))
    if isinstance(given, Job) and (problem := _shared_output(given, found[0].body)) is not None:
        raise InvalidJobError(problem.text, problems=(problem,))
    return dict(found[0].body)


def body_of(job: RewardFLJob) -> Raw:
    """Return a model as a manifest. What was not set in it is left to the cluster's own defaults."""
    metadata = job.metadata.model_dump(
        mode="json", by_alias=True, exclude_unset=True, include={"name", "namespace", "labels", "annotations"}
    )
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def _documents(given: Submittable) -> list[manifests.Document]:
    if isinstance(given, RewardFLJob):
        return [manifests.Document(GIVEN, 1, body_of(given))]
    if isinstance(given, Job):
        metadata = {"name": given.name, "namespace": given.namespace, "labels": dict(given.metadata.labels)}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": _unsuspended(given.raw.get("spec"))}
        return [manifests.Document(GIVEN, 1, body)]
    if isinstance(given, Mapping):
        return [manifests.Document(GIVEN, 1, dict(given))]
    return manifests.read([str(given)]) if _is_file(given) else manifests.parse(str(given))


def _unsuspended(spec: Any) -> Any:
    """Return a job's spec without its being suspended: that was about the job that was read."""
    if not isinstance(spec, dict) or not isinstance(spec.get("runPolicy"), dict):
        return spec
    return {**spec, "runPolicy": {key: value for key, value in spec["runPolicy"].items() if key != "suspend"}}


def _shared_output(source: Job, manifest: Raw) -> Problem | None:
    """What is wrong where another job is to write where `source` writes: it would find its checkpoints, or delete them."""
    metadata, output = manifest["metadata"], manifest["spec"]["output"]
    before = str((source.raw.get("spec") or {}).get("output", ""))
    if (metadata["namespace"], metadata["name"]) == (source.namespace, source.name) or before.rstrip("/") != output.rstrip("/"):
        return None
    message = f"{source.namespace}/{source.name} writes there, and the two would go on from, and delete, each other's checkpoints"
    return Problem(("spec", "output"), message, "give another with output=", output)


def _is_file(given: Submittable) -> bool:
    """Whether a file is named. A manifest's text has several lines, or is JSON."""
    return isinstance(given, Path) or (isinstance(given, str) and "\n" not in given and not given.lstrip().startswith("{"))


def _lines(found: Checked) -> list[str]:
    """What is wrong, with its place in the file where it came from one."""
    return [problem.text for problem in found.problems] if found.document.file == GIVEN else found.lines(several=False)
