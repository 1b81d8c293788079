"""What kopf is told, where its own defaults would not do."""

from rewardfl_operator.main import kopf_settings
from rewardfl_operator.settings import OperatorSettings

OBJECTS_A_SECOND = 1000
"""Of the benchmark: a thousand jobs are heard of within a second or two, also when the operator starts."""


def test_kopfs_workers_hand_on_a_thousand_jobs_a_second() -> None:
    queueing = kopf_settings(OperatorSettings()).queueing

    assert queueing.worker_limit is not None
    assert queueing.worker_limit / queueing.idle_timeout >= OBJECTS_A_SECOND
    assert queueing.idle_timeout > 0, "kopf would never look into a queue that it does not wait for"
