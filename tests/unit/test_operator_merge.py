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


def test_ports_of_the_same_number_and_another_protocol_stand_beside_each_other() -> None:
    base = {"ports": [{"name": "rendezvous", "containerPort": 29400}]}

    merged = merge(base, {"ports": [{"containerPort": 29400, "protocol": "UDP"}, {"containerPort": 29400, "name": "renamed"}]})

    assert merged["ports"] == [{"name": "renamed", "containerPort": 29400}, {"containerPort": 29400, "protocol": "UDP"}]


def test_an_init_container_and_a_container_of_one_name_are_not_mixed_up() -> None:
    base = {"initContainers": [{"name": "stage", "image": "a"}], "containers": [{"name": "trainer", "image": "a"}]}

    merged = merge(base, {"initContainers": [{"name": "trainer", "image": "b"}]})

    assert merged["containers"] == base["containers"]
    assert [item["name"] for item in merged["initContainers"]] == ["stage", "trainer"]


def test_variables_keep_their_order_since_later_ones_may_refer_to_earlier_ones() -> None:
    base = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)"}]}

    merged = merge(base, {"env": [{"name": "D", "value": "4"}, {"name": "A", "value": "x"}, {"name": "C", "value": "$(D)"}]})

    assert [item["name"] for item in merged["env"]] == ["A", "B", "D", "C"]
    assert merged["env"][0]["value"] == "x"


def test_null_removes_nested_fields_and_leaves_none_behind() -> None:
    base = {
        "containers": [{"name": "trainer", "resources": {"limits": {"memory": "1Gi", "gpu": "8"}}, "securityContext": {"a": 1}}]
    }
    patch = {"containers": [{"name": "trainer", "resources": {"limits": {"memory": None}}, "securityContext": None, "tty": None}]}

    assert merge(base, patch)["containers"] == [{"name": "trainer", "resources": {"limits": {"gpu": "8"}}}]


def test_an_element_given_twice_is_merged_twice() -> None:
    patch = {"containers": [{"name": "x", "image": "a"}, {"name": "x", "tty": True}]}

    assert merge({"containers": []}, patch)["containers"] == [{"name": "x", "image": "a", "tty": True}]


def test_names_of_the_wrong_kind_are_left_for_the_api_server_to_refuse() -> None:
    assert merge({"volumes": [{"name": "a"}]}, {"volumes": [{"name": ["a"]}]})["volumes"] == [{"name": "a"}, {"name": ["a"]}]
