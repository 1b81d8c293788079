"""The training loop of Reward FL, top to bottom: `torchrun ... -m rewardfl_trainer.train --config config.yaml`.

prepare (or resume) -> sample videos before -> for every batch: generate, score, backward, step, evaluate, ask the guard, report,
save -> weights and videos after.
What each part does stands in the module it is imported from; docs/algorithm.md says why.
"""

import argparse
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from torch import distributed

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.progress import Checkpoint, Results
from rewardfl_api.trainer_config import CONFIG_KEY, CONFIG_PATH, TrainerConfig

from . import configuration, environment
from .console import Console
from .engine import StepReport
from .environment import Process
from .failures import Terminated, run_main
from .feedback import Outcome
from .files import METRICS_FILE, SAMPLES_FOLDER, TENSORBOARD_FOLDER
from .finished import save_finished_results
from .metrics import MetricsLog, mean_over_ranks, peak_memory_gb
from .order import Batch
from .process_age import process_seconds, take_staging_time
from .progress import Reporter
from .reporting import Reporting, device_name
from .run import AlreadyDoneError, Run, assemble, eta_seconds
from .staging import leases, localize
from .stopping import StopRequest
from .storage import join
from .suspension import best_of, wait_for_suspension
from .timeline import Timeline
from .watcher import Judged

RATE_STEPS = 20
"""Steps over which seconds per step, and with it the ETA, is averaged."""

logger = logging.getLogger("rewardfl_trainer.train")  # run as __main__


@dataclass
class Clock:
    """Seconds per step over the last steps."""

    started: float = field(default_factory=time.monotonic)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_STEPS))

    def lap(self) -> float:
        """Close a step and return the mean seconds of the last ones."""
        now = time.monotonic()
        self.durations.append(now - self.started)
        self.started = now
        return sum(self.durations) / len(self.durations)


def train(config: TrainerConfig, process: Process, seconds_ago: float = 0.0) -> None:
    """Train as `config` says.

    Args:
        config: as the user wrote it.
        process: this rank.
        seconds_ago: when what belongs to this run began.

    Raises:
        RewardFLError: what a user can act upon; the exit code says whether a retry makes sense.
    """
    timeline = Timeline(process.world_size, device_name(process.device), seconds_ago)
    timeline.staged(take_staging_time(Path(config.work_dir)) if process.is_main else None)
    with Reporter(config.progress if process.is_main else None) as reporter:
        reporter.update(phase="Preparing", message="Checking the dataset and loading the models.")
        try:
            tell = lambda text: reporter.update(phase="Preparing", message=text)  # noqa: E731
            run = assemble(localize(config), process, tell, config, timeline=timeline)
        except AlreadyDoneError as done:
            logger.info("%s; the results are in %s", done, config.output)
            reporter.update(phase="Saving", step=done.step, total_steps=done.total_steps, results=done.results, guard=done.trip)
            return
        start, total = run.order.start.step, run.order.total_steps
        reporting = Reporting(run, config, lambda results: reporter.update(results=results))
        reporting.begin()
        with MetricsLog(run.folder, process, start) as log, run.saver.uploads:
            if run.resumed is None:
                message = "Generating videos before training."
                reporter.update(phase="Preparing", step=0, total_steps=total, message=message)
                timeline.switch("evaluating")
                log.sample_scores(0, run.sampler.generate(run.sample_positions, "before"))
                log.held_out(run.evaluation.measure(0))
                if run.evaluation.latest:
                    run.watcher.after_evaluation(0, run.evaluation)
            last = start
            if not run.watcher.has_ended:
                reporter.update(phase="Training", step=start, total_steps=total, guard=run.watcher.trip)
                timeline.switch("training")
                last = train_steps(run, log, reporter, reporting)
            reporter.update(phase="Saving", step=last, total_steps=total, guard=run.watcher.trip)
            timeline.switch("evaluating")
            log.sample_scores(last, run.sampler.generate(run.sample_positions, "after"))
            timeline.switch("saving")
        run.saver.uploads.tell = lambda text: reporter.update(phase="Saving", message=text)
        results = _save_results(run, config, reporting, last)
        reporter.update(phase="Saving", step=last, total_steps=total, checkpoint=run.saver.uploads.uploaded, results=results)


def train_steps(run: Run, log: MetricsLog, reporter: Reporter, reporting: Reporting | None = None) -> int:
    """Make every optimizer step that is left, or as many as the guard allows; return how many are done in all.

    Without `reporting` no page is made.

    Raises:
        Terminated: SIGTERM has come; a checkpoint is saved.
        RewardFLError: the run has diverged.
    """
    parameters, total = run.config.training, run.order.total_steps
    clock, bad_steps = Clock(), run.resumed.state.bad_steps if run.resumed else 0
    console = Console(total, run.order.start.step, is_main=run.process.is_main)
    with StopRequest(run.process) as stop, console:
        for batch in run.order.batches():
            step = batch.end.step
            outcomes, report = train_batch(run, batch)
            values = mean_over_ranks(outcomes, run.process) | _step_values(run, report, clock.lap(), len(batch.positions))
            bad_steps = 0 if report.applied else bad_steps + 1
            stopping, tripped = stop.agreed_with(run.watcher.after_step(step, values))
            with run.timeline.part("evaluating"):
                held_out = {} if stopping else run.evaluation.measure(step, last=tripped and run.watcher.stops)
            judged = run.watcher.after_evaluation(step, run.evaluation) if held_out else Judged()
            tripped = tripped or judged.tripped
            clock.started = time.monotonic() if held_out else clock.started
            logged = step % parameters.logging_steps == 0 or step == total or bad_steps > 0 or tripped or bool(held_out)
            if logged:
                log.write(step, {"epoch": batch.pass_index, **values, "bad_steps": bad_steps, **held_out})
            console.step(step, values, logged=logged)
            reporter.update(
                step=step,
                total_steps=total,
                epoch=batch.pass_index,
                metrics=_reported(values | run.evaluation.latest),
                eta_seconds=eta_seconds(values["seconds_per_step"], total - step),
                checkpoint=run.saver.uploads.uploaded,
                results=best_of(run),
            )
            if bad_steps >= parameters.max_bad_steps:
                raise _diverged(step, bad_steps, run.saver.uploads.uploaded)
            is_due = (step % parameters.save_steps == 0 or step == total) and not bad_steps
            if stopping or tripped or judged.is_best or is_due:
                log.flush()
                with run.timeline.part("saving"):
                    run.saver.save(batch.end, bad_steps, run.evaluation.latest, run.watcher.memory, run.watcher.best)
                if reporting is not None and not stopping:
                    reporting.checkpoint(step)
                clock.started = time.monotonic()
            if stopping or (tripped and not run.watcher.stops and wait_for_suspension(run, stop, reporter)):
                _leave(run, stop, reporter, reporting, step)
            if tripped:
                total = step
                break
        if stop.agreed():  # asked to while the last checkpoint was saved
            _leave(run, stop, reporter, reporting, total)
    return total


def _leave(run: Run, stop: StopRequest, reporter: Reporter, reporting: Reporting | None, step: int) -> NoReturn:
    """Wait for the upload, as long as there is time, report it, and end. No rank leaves before the main one has done."""
    if reporting is not None:
        reporting.stopped(step)
    run.saver.uploads.finish(stop.seconds_left())
    reporter.update(checkpoint=run.saver.uploads.uploaded, results=best_of(run))
    distributed.barrier()
    raise Terminated


REPORTED = ("reward", "loss", "kl", "grad_norm", "seconds_per_step", "no_face_fraction", "held_out_reward")
"""The metrics of the progress document."""


def _reported(values: Mapping[str, float]) -> dict[str, float]:
    """Return what the progress document says of all values."""
    return {name: values[name] for name in REPORTED if name in values}


def train_batch(run: Run, batch: Batch) -> tuple[list[Outcome], StepReport]:
    """Generate, score and differentiate every sample of a batch, then update the parameters once."""
    outcomes: list[Outcome] = []
    for number, position in enumerate(batch.positions, start=1):
        with run.stopwatch.part("prepare"):
            prepared = run.preparer(position)
        outcomes.append(run.engine.accumulate(lambda row=prepared: run.feedback.loss(row, batch.visit)))  # type: ignore[misc]
        if number < len(batch.positions):
            run.engine.close_sample()
    return outcomes, run.engine.step(sum(outcome.loss for outcome in outcomes) / len(outcomes))


def _step_values(run: Run, report: StepReport, seconds_per_step: float, num_samples: int) -> dict[str, float]:
    """Return what is logged of an optimizer step beside the outcomes; seconds by part and memory are this rank's."""
    frames = run.config.training.num_frames * num_samples * run.process.world_size
    return {
        "grad_norm": report.gradient_norm,
        "learning_rate": report.learning_rate,
        "seconds_per_step": seconds_per_step,
        "frames_per_second": frames / seconds_per_step,
        **run.stopwatch.read(),
        "peak_memory_gb": peak_memory_gb(run.process.device),
    }


def _diverged(step: int, bad_steps: int, checkpoint: Checkpoint | None) -> RewardFLError:
    """Return the error of a run whose losses are not numbers any more."""
    kept = f" The last checkpoint is {checkpoint.uri}." if checkpoint else ""
    return RewardFLError(
        Reason.DIVERGED,
        f"step {step}: the loss or its gradient was not finite {bad_steps} times in a row (training.max_bad_steps).{kept}",
        "Lower training.learning_rate or reward_weight, raise kl_weight, or use dtype fp32.",
        ExitCode.BAD_CONFIGURATION,
    )


def _upload_metrics(run: Run) -> None:
    """Upload the metrics and events."""
    if run.process.is_main:
        run.storage.upload_file(run.folder / METRICS_FILE, join(run.config.output, METRICS_FILE))
        run.storage.upload_folder(run.folder / TENSORBOARD_FOLDER, join(run.config.output, TENSORBOARD_FOLDER))


def _save_results(run: Run, config: TrainerConfig, reporting: Reporting, step: int) -> Results | None:
    """Write and upload the weights after `step` steps, the last ones, the configuration and the metrics; return where they are
    (on the main rank)."""
    weights = run.saver.save_final(step)
    if not run.process.is_main:
        return None
    path = run.folder / CONFIG_KEY
    run.saver.uploads.insist(lambda: run.storage.upload_file(path, join(run.config.output, CONFIG_KEY)))
    run.saver.uploads.insist(lambda: _upload_metrics(run))
    samples = join(run.config.output, SAMPLES_FOLDER) if run.sample_positions else None
    logger.info("trained weights: %s", ", ".join(weights))
    metrics, report = join(run.config.output, METRICS_FILE), reporting.finish(step)
    best = run.saver.uploads.best
    results = Results(lora=weights[0], metrics=metrics, samples=samples, report=report, best_checkpoint=best)
    run.saver.uploads.insist(lambda: save_finished_results(run.storage, run.folder, run.config.output, step, results))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the configuration, set up the process and train."""
    parser = argparse.ArgumentParser(prog="rewardfl_trainer.train", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=CONFIG_PATH, help="configuration file (YAML); default %(default)s")
    config = configuration.load(parser.parse_args(arguments).config)
    environment.prepare(config)
    process = environment.join_process_group(config)
    environment.prepare_logging(process.rank)
    with leases.kept(
        Path(config.work_dir) if process.is_first_of_node else None
    ):  # the launcher does it, too, where there is one
        train(config, process, process_seconds())
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_main(main))
