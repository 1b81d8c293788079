"""What of a RewardFLJob may be changed, and when, in CEL: the API server refuses the rest and names the field.

The rules stand at the root of the schema, since they look at spec and status. Optional fields are compared with their presence,
so that adding or removing one is a change as well. None may refuse what does not change: status updates pass these rules too,
and pass them first, since to compare a spec with itself cost the API server more than all the rest of a status update
(docs/decisions/0110-a-status-update-is-cheap.md).
"""

SUSPENDED_ONLY = (
    "training",
    "deepspeed",
    "guard",
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

OPTIONAL = ("guard", "template", "image", "processesPerNode", "managedBy")
"""Those of them that have no default, so that they may be absent."""

_STATUS_UPDATE = "(has(self.status) && (!has(oldSelf.status) || self.status != oldSelf.status))"
"""Whether this is an update of the status: the API server lets no update change both, so the spec is what it was."""

_SUSPENDED = "oldSelf.spec.runPolicy.suspend || self.spec.runPolicy.suspend"
_HAS_CONDITIONS = "has(oldSelf.status) && has(oldSelf.status.conditions)"
_REFUSED = f"({_HAS_CONDITIONS} && oldSelf.status.conditions.exists(c, c.type == 'Accepted' && c.status == 'False'))"
_FINISHED = "(has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Succeeded', 'Failed'])"


def edit_rules() -> list[dict[str, str]]:
    """Return the validation rules of the resource as a whole that compare it with what it was."""
    while_suspended = {
        "rule": f"{_STATUS_UPDATE} || {_SUSPENDED} || {_FINISHED} || {_all_same(SUSPENDED_ONLY)}",
        "message": "spec: cannot be changed while the job runs",
        "messageExpression": f"{_changed(SUSPENDED_ONLY)} + ': cannot be changed while the job runs; set runPolicy.suspend to "
        "true first (the job saves a checkpoint and goes on from it), or create a new job'",
    }
    never = {
        "rule": f"{_STATUS_UPDATE} || {_all_same(NEVER)}",
        "message": "spec: cannot be changed",
        "messageExpression": f"{_changed(NEVER)} + ': cannot be changed; create a new job'",
    }
    finished = {
        "rule": f"{_STATUS_UPDATE} || !{_FINISHED} || {_REFUSED} || {_all_same(SUSPENDED_ONLY)}",
        "message": "spec: the job has finished, so nothing would come of the change; delete it, or create a job of another name",
    }
    return [while_suspended, never, finished]


def _all_same(fields: tuple[str, ...]) -> str:
    """CEL: whether all of these fields of the spec are what they were."""
    return f"({' && '.join(map(_same, fields))})"


def _changed(fields: tuple[str, ...]) -> str:
    """CEL: the name of the first that is not. Only evaluated for a message."""
    *others, last = fields
    choices = [f"!({_same(field)}) ? 'spec.{field}'" for field in others]
    return f"({' : '.join(choices)} : 'spec.{last}')"


def _same(field: str) -> str:
    """CEL: whether a field of the spec is what it was."""
    equal = f"self.spec.{field} == oldSelf.spec.{field}"
    if field not in OPTIONAL:
        return equal
    there, was_there = f"has(self.spec.{field})", f"has(oldSelf.spec.{field})"
    return f"({there} == {was_there} && (!{there} || {equal}))"
