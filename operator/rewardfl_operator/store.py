"""The RewardFLJobs as last seen, whoever saw them: kopf's watch, the resync, or the answer to a write of our own.

An older version never takes the place of a newer one, so a slow watch cannot undo what was just written.
"""

from collections import Counter
from typing import Any

from .informer import Key, version_of

Raw = dict[str, Any]


class JobStore:
    """RewardFLJobs by namespace and name."""

    def __init__(self) -> None:
        self._bodies: dict[Key, Raw] = {}

    def __len__(self) -> int:
        """How many jobs there are."""
        return len(self._bodies)

    def get(self, key: Key) -> Raw | None:
        """Return the newest version of a job; None when there is none."""
        return self._bodies.get(key)

    def known(self) -> set[Key]:
        """Return the keys of all jobs."""
        return set(self._bodies)

    def by_phase(self) -> Counter[tuple[str, str]]:
        """Count the jobs by namespace and phase; one without a status counts as Pending."""
        return Counter((key[0], _phase(body)) for key, body in self._bodies.items())

    def put(self, body: Raw) -> bool:
        """Keep `body` if it is newer than what is known, and return whether it was."""
        key = key_of(body)
        known = self._bodies.get(key)
        if known is not None and version_of(known) >= version_of(body):
            return False
        self._bodies[key] = {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "managedFields"}}
        return True

    def drop(self, key: Key, uid: str = "") -> None:
        """Forget a job; with `uid`, only if it is the one that is known."""
        known = self._bodies.get(key)
        if known is not None and uid in ("", known["metadata"].get("uid")):
            del self._bodies[key]


def key_of(body: Raw) -> Key:
    """Return namespace and name of an object."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _phase(body: Raw) -> str:
    """The phase as it is written there. Anybody may have written the status, so it may be anything."""
    phase = status.get("phase") if isinstance(status := body.get("status"), dict) else None
    return phase if isinstance(phase, str) else "Pending"
