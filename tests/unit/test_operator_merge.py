"""Partial pod templates are merged as kubectl would merge them."""

from rewardfl_operator.merge import merge


def test_containers_are_merged_by_name_and_new_ones_are_added() -> None:
    base = {"containers": [{"name": "trainer", "image": "a", "resources": {"limits": {"gpu": "8"}}}]}
    patch = {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "1Gi"}}}, {"name": "sidecar", "image": "b"}]}

    assert merge(base, patch)["containers"] == [
        {"name": "trainer", "image": "a", "resources": {"limits": {"gpu": "8", "memory": "1Gi"}}},
        {"name": "sidecar", "image": "b"},
    ]


def test_a_variable_with_a_value_takes_the_place_of_one_from_a_secret() -> None:
    base = {"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "OTHER", "value": "1"}]}

    merged = merge(base, {"env": [{"name": "KEY", "value": "x"}]})

    assert merged["env"] == [{"name": "KEY", "value": "x"}, {"name": "OTHER", "value": "1"}]


def test_a_volume_of_another_kind_takes_the_place_of_the_old_one() -> None:
    merged = merge({"volumes": [{"name": "work", "emptyDir": {}}]}, {"volumes": [{"name": "work", "ephemeral": {}}]})

    assert merged["volumes"] == [{"name": "work", "ephemeral": {}}]


def test_mounts_are_merged_by_their_path() -> None:
    base = {"volumeMounts": [{"name": "work", "mountPath": "/work"}]}

    merged = merge(base, {"volumeMounts": [{"name": "other", "mountPath": "/work"}, {"name": "more", "mountPath": "/more"}]})

    assert merged["volumeMounts"] == [{"name": "other", "mountPath": "/work"}, {"name": "more", "mountPath": "/more"}]


def test_tolerations_add_up_without_repeating_themselves() -> None:
    gpu, spot = {"key": "gpu"}, {"key": "spot"}

    assert merge({"tolerations": [gpu]}, {"tolerations": [gpu, spot]})["tolerations"] == [gpu, spot]


def test_nameless_lists_are_replaced() -> None:
    assert merge({"args": ["a", "b"]}, {"args": ["c"]}) == {"args": ["c"]}


def test_null_removes_a_field() -> None:
    assert merge({"priorityClassName": "high", "subdomain": "x"}, {"priorityClassName": None}) == {"subdomain": "x"}


def test_neither_argument_is_changed() -> None:
    base, patch = (
        {"containers": [{"name": "a", "env": []}]},
        {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]},
    )

    merge(base, patch)["containers"][0]["env"].append("changed")

    assert base == {"containers": [{"name": "a", "env": []}]}
    assert patch == {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}
