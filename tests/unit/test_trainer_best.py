"""The best checkpoint by the held-out reward: which one it is, that it is kept and on record, and what a resumed run knows."""

import json
import logging
import shutil
import threading
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.guard import Guard
from rewardfl_api.progress import BestCheckpoint
from rewardfl_trainer.checkpoint import Saver
from rewardfl_trainer.evaluation import Evaluation, parts_of
from rewardfl_trainer.guard import Memory
from rewardfl_trainer.identity import Rows
from rewardfl_trainer.order import Position
from rewardfl_trainer.resume import find
from rewardfl_trainer.run_state import RunState
from rewardfl_trainer.samples import SampleScore
from rewardfl_trainer.storage import Storage
from rewardfl_trainer.watcher import Judged, Watcher, check_tellable
from tests.unit.checkpoints import MAIN, saver, train_a_step

pytestmark = pytest.mark.usefixtures("process_group")

LAST_STEP = 100


def best_at(made: Saver, step: int, score: float = 0.5) -> BestCheckpoint:
    return BestCheckpoint(step=step, score=score, uri=f"{made.output}/checkpoints/step-{step}")


def save(made: Saver, step: int, best: int | None) -> None:
    train_a_step(made)
    made.save(Position(step=step), best=None if best is None else best_at(made, best, best / LAST_STEP))


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir() if path.is_dir())


def record(made: Saver) -> dict[str, object]:
    content: dict[str, object] = json.loads((Path(made.output) / "best.json").read_text(encoding="utf-8"))
    return content


def test_the_best_checkpoint_is_kept_beside_the_newest_ones_and_named_in_the_output(tmp_path: Path) -> None:
    made = saver(tmp_path, save_total_limit=2)
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(made, step, best)
        assert made.uploads.finish()
    assert steps_in(Path(made.output)) == [2, 4, 5]
    assert record(made) == {"step": 2, "score": 0.02, "uri": f"{made.output}/checkpoints/step-2"}
    assert made.uploads.best == best_at(made, 2, 0.02)
    assert (Path(made.output) / "checkpoints" / "step-2" / "manifest.json").is_file()
    assert steps_in(made.folder) == [4, 5], "on the disk it takes no room once it is uploaded"


def test_a_better_one_takes_its_place_when_it_is_on_record(tmp_path: Path) -> None:
    made = saver(tmp_path, save_total_limit=1)
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
        save(made, step, best)
        assert made.uploads.finish()
    assert steps_in(Path(made.output)) == [3, 4]
    assert record(made)["step"] == 3


class Gate:
    """Storage that takes nothing while it is closed, or refuses the record of the best checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.refused = threading.Event(), ""
        upload = Storage.upload_file

        def upload_file(storage: Storage, local: Path, uri: str) -> str:
            self.gate.wait(30)
            if self.refused and uri.endswith(self.refused):
                raise RewardFLError(Reason.STORAGE_UNAVAILABLE, f"output={uri}: gone", exit_code=ExitCode.UNAVAILABLE)
            return upload(storage, local, uri)

        monkeypatch.setattr(Storage, "upload_file", upload_file)


def test_a_best_checkpoint_that_is_overtaken_while_it_waits_is_uploaded_and_no_newer_metrics_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    made = saver(tmp_path, save_total_limit=1)
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2)):
        (made.folder / "metrics.jsonl").parent.mkdir(parents=True, exist_ok=True)
        (made.folder / "metrics.jsonl").write_text(f"{step}\n")
        save(made, step, best)
    gate.gate.set()
    assert made.uploads.finish()
    assert steps_in(Path(made.output)) == [2, 4]
    assert record(made)["step"] == 2
    assert made.uploads.uploaded is not None
    assert made.uploads.uploaded.step == 4
    assert (Path(made.output) / "metrics.jsonl").read_text() == "4\n"


def test_the_old_best_checkpoint_stays_for_as_long_as_the_record_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(monkeypatch)
    gate.gate.set()
    made = saver(tmp_path, save_total_limit=1)
    for step, best in ((1, 1), (2, 1)):
        save(made, step, best)
        assert made.uploads.finish()
    gate.refused = "best.json"
    for step, best in ((3, 3), (4, 3)):
        save(made, step, best)
        assert not made.uploads.finish()
    assert steps_in(Path(made.output)) == [1, 3, 4]
    assert record(made)["step"] == 1
    assert len([line for line in caplog.messages if "the best checkpoint (step 3) is not on record" in line]) == 1
    gate.refused = ""
    assert made.uploads.finish()
    assert (record(made)["step"], steps_in(Path(made.output))) == (3, [3, 4])


def started_anew(tmp_path: Path) -> Saver:
    """A run in a new pod, whose output has step 1 as its best checkpoint, and step 2."""
    made = saver(tmp_path, save_total_limit=1)
    for step, best in ((1, 1), (2, 1)):
        save(made, step, best)
        assert made.uploads.finish()
    shutil.rmtree(made.folder)
    return saver(tmp_path, save_total_limit=1)


def test_a_resumed_run_knows_the_best_checkpoint_and_keeps_it(tmp_path: Path) -> None:
    again = started_anew(tmp_path)
    found = find(again.storage, again.folder, again.identity)
    assert found is not None
    assert found.state.best == best_at(again, 1, 0.01)
    recalled = again.uploads.recall_best(found.state.best, again.folder / "checkpoints")
    assert recalled == found.state.best
    assert again.uploads.finish()
    assert again.uploads.best == recalled
    save(again, 3, 1)
    assert again.uploads.finish()
    assert steps_in(Path(again.output)) == [1, 3]


def test_a_best_checkpoint_that_is_on_the_disk_only_is_uploaded_after_a_restart(tmp_path: Path) -> None:
    made = saver(tmp_path)
    save(made, 1, 1)
    assert made.uploads.finish()
    shutil.rmtree(made.output)
    again = saver(tmp_path)
    assert again.uploads.recall_best(best_at(made, 1), again.folder / "checkpoints") == best_at(made, 1)
    assert again.uploads.finish()
    assert steps_in(Path(made.output)) == [1]
    assert record(made)["step"] == 1


def test_a_best_checkpoint_that_is_gone_is_forgotten_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = saver(tmp_path)
    assert made.uploads.recall_best(best_at(made, 7), made.folder / "checkpoints") is None
    assert made.uploads.recall_best(None, made.folder / "checkpoints") is None
    assert [line for line in caplog.messages if "step-7, the best checkpoint so far, is gone" in line]


def test_where_the_best_checkpoint_never_arrived_the_one_on_record_is_the_best_and_is_kept(tmp_path: Path) -> None:
    again = started_anew(tmp_path)
    assert again.uploads.recall_best(best_at(again, 7), again.folder / "checkpoints") == best_at(again, 1, 0.01)
    save(again, 3, None)
    assert again.uploads.finish()
    assert steps_in(Path(again.output)) == [1, 3]
    assert again.uploads.best == best_at(again, 1, 0.01)


def test_the_one_on_record_is_kept_until_another_is_even_where_nothing_can_be_compared_with_it(tmp_path: Path) -> None:
    again = started_anew(tmp_path)
    assert again.uploads.recall_best(None, again.folder / "checkpoints") is None
    for step, best, kept in ((3, None, [1, 3]), (4, 4, [4]), (5, 4, [4, 5])):
        save(again, step, best)
        assert again.uploads.finish()
        assert steps_in(Path(again.output)) == kept
    assert record(again)["step"] == 4


def test_a_copied_output_names_the_best_checkpoint_where_it_is_now(tmp_path: Path) -> None:
    again = started_anew(tmp_path)
    elsewhere = best_at(again, 1, 0.01).copy_with(uri="s3://old/out/checkpoints/step-1")
    assert again.uploads.recall_best(elsewhere, again.folder / "checkpoints") == best_at(again, 1, 0.01)
    assert again.uploads.best == best_at(again, 1, 0.01)


def test_a_storage_that_cannot_be_read_for_the_best_checkpoint_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    again = started_anew(tmp_path)

    def refuse(_storage: Storage, uri: str, _local: Path) -> Path:
        raise RewardFLError(Reason.STORAGE_UNAVAILABLE, f"output={uri}: gone", exit_code=ExitCode.UNAVAILABLE)

    monkeypatch.setattr(Storage, "download_file", refuse)
    assert again.uploads.recall_best(best_at(again, 1, 0.01), again.folder / "checkpoints") == best_at(again, 1, 0.01)
    save(again, 3, 1)
    assert steps_in(Path(again.output))[0] == 1
    assert "the best checkpoint cannot be looked for" in caplog.text
    monkeypatch.undo()
    assert again.uploads.finish()


RULES = Guard.model_validate({"kl": {"max": 0.5, "steps": 1}})


def watcher(made: Saver, rules: Guard | None = None, state: RunState | None = None) -> Watcher:
    return Watcher.of(rules, state, made.identity, MAIN, LAST_STEP)


def evaluated(watching: Watcher, step: int, reward: float) -> Judged:
    measured = Evaluation(None, [0], [0], 1, LAST_STEP, 0, {"held_out_reward": reward}, [reward])  # type: ignore[arg-type]
    return watching.after_evaluation(step, measured)


def test_the_best_is_the_highest_of_trained_weights_and_of_equals_the_earlier_with_and_without_a_guard(tmp_path: Path) -> None:
    made = saver(tmp_path)
    for rules in (None, RULES):
        watching = watcher(made, rules)
        course = [(0, 0.9), (5, 0.4), (10, 0.5), (15, 0.5), (20, float("nan")), (25, 0.3)]
        assert [evaluated(watching, *at).is_best for at in course] == [False, True, True, False, False, False]
        assert not evaluated(watching, 30, 1e13).is_best, "no report can hold such a number"
        assert watching.best == best_at(made, 10)


def state_of(made: Saver, watching: Watcher, step: int, **training: object) -> RunState:
    """What a checkpoint says that was saved after `step`; read back from its file."""
    train_a_step(made)
    made.save(Position(step=step), guard=watching.memory, best=watching.best)
    assert made.uploads.finish()
    path = made.folder / "checkpoints" / f"step-{step}" / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["identity"]["training"].update(training)
    path.write_text(json.dumps(content), encoding="utf-8")
    return RunState.read(path)


def test_scores_that_cannot_be_compared_any_more_are_forgotten_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made, watching = saver(tmp_path), watcher(saver(tmp_path))
    evaluated(watching, 5, 0.9)
    kept = watcher(made, None, state_of(made, watching, 5))
    assert (kept.best, kept.memory) == (best_at(made, 5, 0.9), watching.memory)
    fresh = watcher(made, None, state_of(made, watching, 5, missing_face_penalty=-1.0))
    assert (fresh.best, fresh.memory) == (None, Memory())
    assert "missing_face_penalty changed: the held-out reward is compared anew" in caplog.text
    assert evaluated(fresh, 10, 0.1).is_best


def test_other_evaluation_rows_under_the_same_name_are_not_compared_with_the_earlier_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, watching = saver(tmp_path), watcher(saver(tmp_path))
    evaluated(watching, 5, 0.9)
    state = state_of(made, watching, 5)
    before, now = Rows(rows=2, sha256="a"), made.identity.copy_with(held_out=Rows(rows=2, sha256="b"))
    found = Watcher.of(None, state, now, MAIN, LAST_STEP)
    assert found.best == best_at(made, 5, 0.9), "made by a version that did not know"
    seen = state.model_copy(update={"identity": state.identity.copy_with(held_out=before)})
    fresh = Watcher.of(None, seen, now, MAIN, LAST_STEP)
    assert (fresh.best, fresh.memory) == (None, Memory())
    assert "the evaluation rows changed: the held-out reward is compared anew" in caplog.text


def test_a_single_evaluation_video_needs_a_smallest_fall() -> None:
    rules = Guard.model_validate({"heldOut": {"patience": 2}})
    with pytest.raises(RewardFLError, match=r"guard\.heldOut\.minDelta=0: .* one video cannot tell a fall from chance"):
        check_tellable(rules, 1)
    check_tellable(rules, 2)
    check_tellable(rules.copy_with(held_out={"patience": 2, "min_delta": 0.1}), 1)
    check_tellable(RULES, 1)


def test_a_run_that_was_stopped_has_ended_until_its_guard_or_its_parameters_are_changed(tmp_path: Path) -> None:
    made = saver(tmp_path)
    watching = watcher(made, RULES)
    assert not watching.after_step(6, {"kl": 0.4})
    assert watching.after_step(7, {"kl": 0.6})
    trip = watching.trip
    assert trip is not None
    assert (trip.reason, trip.action, trip.step) == (Reason.KL_TOO_HIGH, "Stop", 7)

    same = watcher(made, RULES, state_of(made, watching, 7))
    assert (same.has_ended, same.trip) == (True, trip)
    for rules, changes in ((None, {}), (RULES.copy_with(kl={"max": 0.7}), {}), (RULES, {"kl_weight": 3.0})):
        other = watcher(made, rules, state_of(made, watching, 7, **changes))
        assert (other.has_ended, other.trip, other.memory.rules) == (False, None, rules)


def test_a_run_that_was_suspended_goes_on_and_says_again_why_it_was(tmp_path: Path) -> None:
    made, rules = saver(tmp_path), RULES.copy_with(action="Suspend", kl={"max": 0.5, "steps": 2})
    watching = watcher(made, rules)
    assert [watching.after_step(step, {"kl": 0.6}) for step in (1, 2)] == [False, True]
    going_on = watcher(made, rules, state_of(made, watching, 2))
    assert (going_on.has_ended, going_on.trip) == (False, watching.trip)
    assert [going_on.after_step(step, {"kl": 0.6}) for step in (3, 4)] == [False, True], "a whole window later, not at once"
    assert going_on.trip != watching.trip


def test_after_the_last_step_there_is_nothing_left_to_stop(tmp_path: Path) -> None:
    watching = watcher(saver(tmp_path), RULES)
    assert not watching.after_step(LAST_STEP, {"kl": 9.0})
    assert watching.trip is None


def score(row: int, draw: int, value: float) -> SampleScore:
    return SampleScore(row, draw, "", None, value, {"face_identity": value}, [value], 0.0)


def test_what_an_evaluation_is_the_mean_of_are_its_rows_or_the_noises_of_its_only_row() -> None:
    assert parts_of([score(3, 0, 0.2), score(3, 1, 0.4), score(4, 0, 0.8), score(4, 1, 0.6)]) == pytest.approx([0.3, 0.7])
    assert parts_of([score(3, 0, 0.2), score(3, 1, 0.4)]) == [0.2, 0.4]
