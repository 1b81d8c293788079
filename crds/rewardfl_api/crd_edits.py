"""What of a RewardFLJob may be changed, and when, in CEL: the API server refuses the rest and names the field.

The rules stand at the root of the schema, since they look at spec and status. Optional fields are compared with their presence,
so that adding or removing one is a change as well. None may refuse what does not change: status updates pass these rules too.
"""

SUSPENDED_ONLY = (
    "training",
    "deepspeed",
    "template",
    "image",
    "storage",
    "cache",
    "nodes",
    "gpusPerNode",
    "processesPerNode",
    "runPolicy.backoffLimit",
)
"""Fields that pods have read, or that a Kubernetes Job cannot take over, when they run. The operator makes the Job anew."""

NEVER = ("dataset", "output", "managedBy")
"""Fields by which a job is what it is: its checkpoints belong to them, or its controller."""

OPTIONAL = ("template", "image", "processesPerNode", "managedBy")
"""Those of them that have no default, so that they may be absent."""

_SUSPENDED = "oldSelf.spec.runPolicy.suspend || self.spec.runPolicy.suspend"
_HAS_CONDITIONS = "has(oldSelf.status) && has(oldSelf.status.conditions)"
_REFUSED = f"({_HAS_CONDITIONS} && oldSelf.status.conditions.exists(c, c.type == 'Accepted' && c.status == 'False'))"
_FINISHED = "(has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Succeeded', 'Failed'])"


def edit_rules() -> list[dict[str, str]]:
    """Return the validation rules of the resource as a whole that compare it with what it was."""
    while_suspended = [
        {
            "rule": f"{_SUSPENDED} || {_FINISHED} || {_same(field)}",
            "message": f"spec.{field}: cannot be changed while the job runs; set runPolicy.suspend to true first "
            "(the job saves a checkpoint and goes on from it), or create a new job",
        }
        for field in SUSPENDED_ONLY
    ]
    never = [{"rule": _same(field), "message": f"spec.{field}: cannot be changed; create a new job"} for field in NEVER]
    finished = {
        "rule": f"!{_FINISHED} || {_REFUSED} || ({' && '.join(_same(field) for field in SUSPENDED_ONLY)})",
        "message": "spec: the job has finished, so nothing would come of the change; delete it, or create a job of another name",
    }
    return [*while_suspended, *never, finished]


def _same(field: str) -> str:
    """CEL: whether a field of the spec is what it was."""
    equal = f"self.spec.{field} == oldSelf.spec.{field}"
    if field not in OPTIONAL:
        return equal
    there, was_there = f"has(self.spec.{field})", f"has(oldSelf.spec.{field})"
    return f"({there} == {was_there} && (!{there} || {equal}))"
