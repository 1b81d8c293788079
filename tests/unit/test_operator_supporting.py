"""How it is known, from metadata alone, whether an object is as it was left."""

from typing import Any

from rewardfl_operator import names, resources
from rewardfl_operator.settings import OperatorSettings
from rewardfl_operator.supporting import OTHERS_MARK, seal, stub, take_over
from tests.unit.operator_objects import job


def stored(*entries: tuple[str, str], **metadata: Any) -> dict[str, Any]:
    """An object as the API server shows it, written to by these managers (manager and operation)."""
    written = [{"manager": manager, "operation": operation, "fieldsV1": {}} for manager, operation in entries]
    known = {"name": "face", "namespace": "team", "uid": "u", "resourceVersion": "5", "managedFields": written}
    return {"kind": "Service", "metadata": {**known, **metadata}, "spec": {"clusterIP": "None"}}


def test_the_seal_is_the_same_for_the_same_job_and_another_when_a_field_changes() -> None:
    def seals(**spec: Any) -> dict[str, str]:
        manifests = resources.supporting_objects(job(**spec), OperatorSettings())
        return {f"{manifest['kind']}/{manifest['metadata']['name']}": seal(manifest) for manifest in manifests}

    first, again, other = seals(), seals(), seals(output="s3://results/other/")

    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"ConfigMap/face-config"}


def test_a_stub_tells_owner_seal_and_whether_others_have_written_and_keeps_no_content() -> None:
    owners = [{"apiVersion": "v1", "kind": "RewardFLJob", "name": "face", "uid": "o", "controller": True}]
    annotations = {names.APPLIED_ANNOTATION: "abc", "somebody": "else"}
    ours = stub(stored((names.FIELD_MANAGER, "Update"), ownerReferences=owners, annotations=annotations))
    theirs = stub(stored((names.FIELD_MANAGER, "Update"), ("kubectl-edit", "Update")))

    assert ours["metadata"]["annotations"] == {names.APPLIED_ANNOTATION: "abc"}
    assert ours["metadata"]["ownerReferences"][0]["uid"] == "o"
    assert not ours["metadata"][OTHERS_MARK]
    assert theirs["metadata"][OTHERS_MARK]
    assert "spec" not in ours
    assert "managedFields" not in ours["metadata"]


def test_only_what_the_operator_has_created_is_taken_over_and_only_once() -> None:
    patch = take_over(stored((names.FIELD_MANAGER, "Update"), ("kubectl-edit", "Update")))

    assert patch is not None
    entries = [(entry["manager"], entry["operation"]) for entry in patch["metadata"]["managedFields"]]
    assert entries == [(names.FIELD_MANAGER, "Apply"), ("kubectl-edit", "Update")]
    assert patch["metadata"]["resourceVersion"] == "5"
    assert take_over(stored((names.FIELD_MANAGER, "Apply"), ("kubectl-edit", "Update"))) is None
