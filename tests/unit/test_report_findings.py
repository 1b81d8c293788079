"""What the report says in words, decided by numbers: each warning where it belongs, and none of a run that goes well."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from rewardfl_api.guard import GuardTrip
from rewardfl_trainer.report.data import RunData
from rewardfl_trainer.report.findings import findings
from rewardfl_trainer.report.times import Times
from tests.unit.report_runs import lines, run_with


def titles(run: RunData, times: Times | None = None) -> list[str]:
    return [finding.title for finding in findings(run, times or Times())]


def steady(value: float) -> Callable[[float], float]:
    return lambda _: value


HEALTHY = {
    "reward": lambda done: 0.4 + 0.2 * done,
    "kl": lambda done: 0.01 * done,
    "no_face_fraction": steady(0.02),
    "grad_norm": lambda done: 0.8 + 0.1 * done,
    "bad_steps": steady(0),
}
RISING = [(0.40, 0.42), (0.45, 0.47), (0.52, 0.54)]


def test_a_run_that_goes_well_is_told_nothing_but_that() -> None:
    run = run_with(lines(50, **HEALTHY), RISING, max_grad_norm=1.0)
    found = findings(run, Times({"training": 90.0, "preparing": 10.0}))
    assert [(finding.level, finding.title) for finding in found] == [("good", "The held-out reward has risen")]
    assert "beyond the spread of 2 noises" in found[0].text


def test_a_rise_within_the_spread_of_the_noises_is_said_to_be_uncertain() -> None:
    run = run_with(lines(50, **HEALTHY), [(0.40, 0.50), (0.42, 0.52)])
    found = next(finding for finding in findings(run, Times()) if finding.level == "good")
    assert "beyond" not in found.text
    assert "raise evalNoiseSeeds" in found.advice


@pytest.mark.parametrize(("action", "did"), [("Stop", "stopped the run"), ("Suspend", "asked to suspend the run")])
def test_that_the_guard_ended_a_run_comes_first_with_bound_and_remedy(action: str, did: str) -> None:
    told = {"reason": "KlTooHigh", "action": action, "step": 50, "time": "2026-01-01T00:00:00Z", "message": "The KL was 0.8."}
    run = replace(run_with(lines(50, **HEALTHY), RISING), guard=GuardTrip.model_validate(told))
    first = findings(run, Times())[0]
    assert (first.level, first.title, first.text) == ("warning", f"The guard {did} after step 50", "The KL was 0.8.")
    assert "klWeight" in first.advice


def test_overfitting_is_seen_where_the_reward_rises_while_the_held_out_one_falls() -> None:
    warning = "Training reward rises while the held-out reward falls"
    falling = [(0.50, 0.51), (0.58, 0.59), (0.50, 0.51)]
    run = run_with(lines(50, **HEALTHY), falling)
    assert titles(run)[0] == warning
    assert "near step 10" in findings(run, Times())[0].advice
    assert warning not in titles(run_with(lines(50, **HEALTHY), [(0.50, 0.70), (0.58, 0.78), (0.50, 0.70)])), "within the spread"
    falls_too = HEALTHY | {"reward": lambda done: 0.6 - 0.2 * done}
    assert warning not in titles(run_with(lines(50, **falls_too), falling))


def test_a_kl_that_grows_ever_faster_and_counts_is_a_warning() -> None:
    grows = HEALTHY | {"kl": lambda done: 50.0**done / 50}
    assert "KL runs away" in titles(run_with(lines(50, **grows), RISING, kl_weight=1.0, reward_weight=0.1, reward_scale=0.16))
    assert "KL runs away" not in titles(run_with(lines(50, **grows), RISING, kl_weight=1e-4, reward_weight=1.0)), (
        "it counts for nothing"
    )
    linear = HEALTHY | {"kl": lambda done: 5.0 * done}
    assert "KL runs away" not in titles(run_with(lines(50, **linear), RISING, kl_weight=1.0))


@pytest.mark.parametrize(("name", "what"), [("no_face_fraction", "training"), ("held_out_no_face_fraction", "held-out")])
def test_faces_that_vanish_are_told_with_their_share(name: str, what: str) -> None:
    values = HEALTHY | {name: lambda done: 0.02 + 0.4 * done**3}
    found = findings(run_with(lines(50, **values), RISING), Times())
    assert found[0].title == f"Faces vanish from the {what} videos"
    assert "2% did at the beginning" in found[0].text


def test_frames_that_never_showed_a_face_are_told_as_that() -> None:
    found = titles(run_with(lines(50, **(HEALTHY | {"no_face_fraction": steady(0.7)})), RISING))
    assert found[0] == "Most frames of the training videos show no face"


def test_a_run_in_which_nothing_moves_is_told_so_only_after_enough_steps() -> None:
    still = HEALTHY | {"reward": steady(0.5)}
    assert titles(run_with(lines(50, **still), [(0.40,), (0.401,)]))[0] == "Nothing moves"
    assert "Nothing moves" not in titles(run_with(lines(5, **still)))
    assert "Nothing moves" not in titles(run_with(lines(50, **still), [(0.40,), (0.46,)])), "the held-out reward does"


def test_a_reward_that_falls_and_steps_that_were_skipped_are_warnings() -> None:
    values = HEALTHY | {"reward": lambda done: 0.6 - 0.2 * done, "bad_steps": lambda done: 1.0 if 0.5 < done < 0.56 else 0.0}
    found = findings(run_with(lines(50, **values), RISING), Times())
    assert {"The training reward falls", "Steps were skipped"} <= {
        finding.title for finding in found if finding.level == "warning"
    }
    assert next(finding for finding in found if finding.title == "Steps were skipped").text.startswith(
        "The loss or its gradient was not finite in 2 "
    )


def test_a_gradient_that_is_always_clipped_or_jumps_is_a_note() -> None:
    clipped = HEALTHY | {"grad_norm": steady(3.0)}
    assert "The gradient is clipped at nearly every step" in titles(run_with(lines(50, **clipped), RISING, max_grad_norm=1.0))
    assert not any("gradient" in title for title in titles(run_with(lines(50, **clipped), RISING, max_grad_norm=0.0)))
    jumps = HEALTHY | {"grad_norm": lambda done: 40.0 if done == 0.5 else 0.8}
    found = findings(run_with(lines(50, **jumps), RISING, max_grad_norm=1.0), Times())
    assert next(finding for finding in found if "jumps" in finding.title).text.startswith("At step 25 it was 40")


def test_a_run_without_evaluation_is_told_how_to_have_one() -> None:
    found = findings(run_with(lines(50, **HEALTHY)), Times())
    assert [(finding.level, finding.title) for finding in found] == [("note", "No held-out reward")]
    assert "evalRows" in found[0].advice


def test_steps_that_wait_for_data_are_told() -> None:
    waits = HEALTHY | {"seconds_prepare": steady(4.0), "seconds_backward": steady(5.0)}
    assert "Steps wait for their data" in titles(run_with(lines(50, **waits), RISING))
    works = HEALTHY | {"seconds_prepare": steady(1.0), "seconds_backward": steady(5.0)}
    assert "Steps wait for their data" not in titles(run_with(lines(50, **works), RISING))


def test_restarts_that_cost_much_are_a_warning() -> None:
    run = run_with(lines(50, **HEALTHY), RISING)
    assert titles(run, Times({"training": 80.0}, lost=30.0, restarts=2))[0] == "Restarts are expensive"
    assert "Restarts are expensive" not in titles(run, Times({"training": 80.0}, lost=5.0, restarts=1))


def test_a_run_that_has_not_made_a_step_yet_can_be_judged() -> None:
    assert titles(RunData("run")) == ["No held-out reward"]
