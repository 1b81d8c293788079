"""A ROLL configuration becomes a RewardFLJob: values are kept, and every key that is not is named with what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rewardfl_api.cli import app
from rewardfl_api.deepspeed import preset_config
from rewardfl_api.errors import ExitCode, RewardFLError
from rewardfl_api.job import RewardFLJob
from rewardfl_api.roll import Converted, convert
from rewardfl_api.roll_keys import ROLL_DEFAULTS
from rewardfl_api.training import TrainingParameters
from tests.unit.roll_example import DOCUMENT_EXAMPLE, ROLL_EXAMPLE

DATASET, RESULTS = "s3://data/faces/", "s3://results/faces/"


def roll(changes: dict[str, Any] | None = None, without: tuple[str, ...] = (), text: str = ROLL_EXAMPLE) -> str:
    """Return the example with values changed or taken out, by their dotted keys."""
    content = yaml.safe_load(text)
    for key in [*(changes or {}), *without]:
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        if key in without:
            del section[last]
        else:
            section[last] = (changes or {})[key]
    return yaml.safe_dump(content)


def converted(changes: dict[str, Any] | None = None, *without: str) -> Converted:
    return convert(roll(changes, without), dataset=DATASET, output=RESULTS)


def note_of(result: Converted, key: str) -> str:
    """Return what is said about a key."""
    (found,) = (str(note) for note in result.notes if note.key.partition("=")[0] == key)
    return found


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(RewardFLError) as caught:
        converted(changes)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION
    return caught.value.message


def test_rolls_own_example_keeps_every_value() -> None:
    job = convert(ROLL_EXAMPLE, dataset=DATASET, output=RESULTS).job
    source = yaml.safe_load(ROLL_EXAMPLE)
    sections = (source, source["actor_train"]["training_args"], source["actor_train"]["model_args"]["model_config_kwargs"])
    known = {
        name: value
        for section in sections
        for name, value in section.items()
        if name in TrainingParameters.model_fields and value is not None
    }
    assert len(known) > 24
    for name, value in known.items():
        expected = [value] if name == "model_paths" else value
        assert getattr(job.spec.training, name) == expected, name
    assert (job.metadata.name, job.spec.nodes, job.spec.gpus_per_node) == ("reward-fl-zero2-cpuoffload", 1, 8)
    assert (job.spec.dataset, job.spec.output, job.spec.training.dtype) == (DATASET, RESULTS, "bf16")
    assert job.spec.deepspeed.resolved() == preset_config("zero2_cpuoffload")


def test_every_key_of_rolls_example_is_kept_or_named() -> None:
    result = converted()
    named = {note.key.partition("=")[0] for note in result.notes}
    assert {"defaults", "hydra", "logging_dir", "checkpoint_config.type", "resume_from_checkpoint", "sequence_length"} <= named
    assert {"actor_train.data_args.preprocessing_num_workers", "system_envs.RAY_PROFILING", "max_steps"} <= named
    assert not any("unknown" in note.text for note in result.notes)


def test_a_length_that_roll_would_overwrite_is_named_with_the_place_where_it_counts() -> None:
    result = converted({"actor_train.training_args.max_steps": 77})
    said = note_of(result, "actor_train.training_args.max_steps")
    assert "move it there" in said
    assert "nothing to do" not in said
    assert result.job.spec.training.max_steps == ROLL_DEFAULTS["max_steps"]


def test_the_documents_flat_example_converts_with_nothing_filled_in() -> None:
    job = convert(DOCUMENT_EXAMPLE, output=RESULTS).job
    given = {name: value for name, value in yaml.safe_load(DOCUMENT_EXAMPLE).items() if value is not None}
    given["model_paths"] = [given["model_paths"]]
    assert job.spec.training.model_dump(exclude_unset=True) == given
    assert "deepspeed" not in job.spec.model_fields_set


def test_what_is_written_is_the_job_and_its_comments() -> None:
    result = convert(ROLL_EXAMPLE)
    text = result.render()
    assert RewardFLJob.model_validate(yaml.safe_load(text)) == result.job
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments == [f"# {note}" for note in result.notes]
    assert "spec.output: change it to your bucket" in text


def test_dotted_keys_lists_and_nulls_mean_the_same() -> None:
    text = roll(
        {
            "actor_train.training_args": None,
            "actor_train.device_mapping": [0, 1, 2, 3, 4, 5, 6, 7],
            "actor_train.data_args.file_name": ["./data/example_video_dataset/metadata.csv"],
            "actor_train.model_args.model_config_kwargs.lora_alpha": None,
        }
    )
    dotted = "\n".join(
        f"actor_train.training_args.{name}: {value}"
        for name, value in yaml.safe_load(ROLL_EXAMPLE)["actor_train"]["training_args"].items()
    )
    text = text.replace("  training_args: null\n", "")
    assert convert(f"{text}{dotted}\n").job == convert(ROLL_EXAMPLE).job


def test_references_to_other_keys_are_followed() -> None:
    given = {"exp_name": "run-${seed}", "actor_train.training_args.learning_rate": "${rate}", "rate": "1e-5"}
    job = converted(given).job
    assert (job.metadata.name, job.spec.training.learning_rate) == ("run-42", 1e-5)


@pytest.mark.parametrize(
    ("value", "said"), [("${nothing}", r"\$\{nothing\}: there is no such key here"), ("${exp_name}", "leads back to itself")]
)
def test_a_reference_to_nothing_or_to_itself_is_refused(value: str, said: str) -> None:
    with pytest.raises(RewardFLError, match=said):
        converted({"exp_name": value})


@pytest.mark.parametrize(
    ("reference", "preset"),
    [
        ("deepspeed_zero", "zero0"),
        ("deepspeed_zero2", "zero2"),
        ("deepspeed_zero3", "zero3"),
        ("deepspeed_zero3_cpuoffload", "zero3_cpuoffload"),
    ],
)
def test_deepspeed_presets_are_known_by_rolls_names(reference: str, preset: str) -> None:
    result = converted({"actor_train.strategy_args.strategy_config": f"${{{reference}}}"})
    assert result.job.spec.deepspeed.preset == preset


def test_a_deepspeed_configuration_that_is_spelled_out_is_kept_but_for_what_the_parameters_say() -> None:
    section = {
        "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": True},
    }
    result = converted({"deepspeed_mine": section, "actor_train.strategy_args.strategy_config": "${deepspeed_mine}"})
    assert result.job.spec.deepspeed.config == {"zero_optimization": {"stage": 3, "overlap_comm": True}}
    said = note_of(result, "actor_train.strategy_args.strategy_config")
    assert "bf16, train_micro_batch_size_per_gpu, zero_optimization.reduce_bucket_size left out" in said


@pytest.mark.parametrize(
    ("mapping", "per_node", "machines"),
    [("list(range(0,8))", 8, (1, 8)), ("list(range(0, 16))", 8, (2, 8)), ("[0, 1]", 8, (1, 2)), (list(range(4)), 2, (2, 2))],
)
def test_devices_become_nodes_and_gpus(mapping: object, per_node: int, machines: tuple[int, int]) -> None:
    given = {"actor_train.device_mapping": mapping, "num_gpus_per_node": per_node, "train_batch_size": None}
    spec = converted({**given, "train_batch_size": machines[0] * machines[1]}).job.spec
    assert (spec.nodes, spec.gpus_per_node) == machines


def test_a_device_mapping_is_never_evaluated(tmp_path: Path) -> None:
    said = refusal({"actor_train.device_mapping": f"__import__('pathlib').Path('{tmp_path}/run').touch()"})
    assert "device_mapping" in said
    assert not (tmp_path / "run").exists()


def test_rolls_defaults_are_written_out_where_they_differ() -> None:
    result = converted(None, "actor_train.training_args.learning_rate", "save_steps", "actor_train.training_args.warmup_steps")
    training = result.job.spec.training
    assert (training.learning_rate, training.save_steps, training.warmup_steps, training.max_steps) == (5e-5, 50, 0, 500)
    assert "ROLL's default 5e-05 is written out" in note_of(result, "learning_rate")


def test_a_share_of_warmup_becomes_steps() -> None:
    given = {"actor_train.training_args.warmup_ratio": 0.03, "actor_train.training_args.warmup_steps": 0, "max_steps": 150}
    assert converted(given).job.spec.training.warmup_steps == 5
    assert "warmup_steps decides" in note_of(
        converted({**given, "actor_train.training_args.warmup_steps": 7}), "actor_train.training_args.warmup_ratio"
    )


def test_a_batch_of_several_steps_is_left_out_and_one_that_is_none_is_refused() -> None:
    result = converted({"train_batch_size": 32})
    assert result.job.spec.training.train_batch_size is None
    assert "4 optimizer steps" in note_of(result, "train_batch_size")
    assert "must equal perDeviceTrainBatchSize" in refusal({"train_batch_size": 12})


@pytest.mark.parametrize(("kept", "limit"), [(3, 3), (0, 1000)])
def test_the_number_of_kept_checkpoints_is_taken(kept: int, limit: int) -> None:
    assert converted({"max_ckpt_to_keep": kept}).job.spec.training.save_total_limit == limit


def test_environment_variables_go_to_the_trainer() -> None:
    template = converted({"system_envs": {"NCCL_DEBUG": "INFO", "RAY_DEDUP_LOGS": 0}}).job.spec.template
    assert template == {"spec": {"containers": [{"name": "trainer", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}]}}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("actor_train.training_args.learning_rat", "did you mean learning_rate?"),
        ("actor_train.model_args.model_config_kwargs.quantize", "unknown to ROLL's Reward FL and to the job; remove it"),
        ("actor_train.model_args.lora_rank", "put it there"),
        ("actor_infer", "unknown"),
    ],
)
def test_an_unknown_or_meaningless_key_is_named_with_what_to_do(key: str, said: str) -> None:
    assert said in note_of(converted({key: 3}), key)


def test_everything_that_cannot_be_used_is_in_one_error() -> None:
    said = refusal(
        {
            "actor_train.strategy_args.strategy_name": "megatron_train",
            "actor_train.training_args.fp16": True,
            "actor_train.model_args.model_config_kwargs.extra_inputs": "input_video",
            "actor_train.model_args.model_config_kwargs.final_timestep": 9,
        }
    )
    assert "actor_train.strategy_args.strategy_name=megatron_train: only diffusion_deepspeed_train" in said
    assert "actor_train.training_args.fp16=True: fp16 is not supported; use bf16 or fp32" in said
    assert "extra_inputs='input_video': unknown input_video; known are input_image, end_image" in said


def test_a_parameter_that_is_given_twice_differently_is_refused() -> None:
    said = refusal({"actor_train.model_args.model_config_kwargs.learning_rate": 1.0})
    assert "actor_train.training_args.learning_rate=2.5e-06: given as 1.0 in another section; write it once" in said


def test_the_lora_alone_is_trained_where_nothing_else_is_named() -> None:
    module = "actor_train.model_args.model_config_kwargs"
    result = converted({f"{module}.trainable_models": None, f"{module}.lora_base_model": "dit"})
    assert result.job.spec.training.trainable_models == "dit"


def test_compat_roll_is_asked_for_by_the_option(tmp_path: Path) -> None:
    path, target = tmp_path / "reward_fl_config.yaml", tmp_path / "job.yaml"
    path.write_text(ROLL_EXAMPLE)
    command = ["convert", str(path), "--compat", "roll", "--dataset", DATASET, "--results", RESULTS, "-o", str(target)]
    answer = CliRunner().invoke(app, command)
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert "rewardfl convert: sequence_length=1024: left out" in answer.stderr
    job = RewardFLJob.model_validate(yaml.safe_load(target.read_text()))
    assert job.spec.training.compat == "roll"
    assert convert(ROLL_EXAMPLE).job.spec.training.compat == "none"


@pytest.mark.parametrize("key", ["learning_rat", "use_gradient_checkpointing_offlod"])
def test_strict_writes_nothing_and_ends_with_78_where_a_key_is_not_kept(tmp_path: Path, key: str) -> None:
    content = {"learning_rate": 1e-6, "reward_model_path": "/antelopev2/", "model_paths": "/wan22_paths.json", "seed": 1}
    source, target = tmp_path / "config.yaml", tmp_path / "job.yaml"
    command = ["convert", str(source), "--strict", "--dataset", DATASET, "--results", RESULTS, "-o", str(target)]
    for given, code in ((content | {key: 1}, ExitCode.BAD_CONFIGURATION), (content, ExitCode.DONE)):
        source.write_text(yaml.safe_dump(given | {"trainable_models": "dit"}))
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == code
        assert target.exists() == (code == ExitCode.DONE)
        assert (f"rewardfl convert: {key}=1: left out: unknown" in answer.stderr) == (code != ExitCode.DONE)
        assert ("--strict: 1 of the keys in" in answer.stderr) == (code != ExitCode.DONE)


def test_every_key_that_is_said_to_be_left_out_counts_as_not_kept() -> None:
    section = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    given = {"deepspeed_mine": section, "actor_train.strategy_args.strategy_config": "${deepspeed_mine}", "train_batch_size": 32}
    notes = converted({**given, "system_envs": {"RAY_DEDUP_LOGS": 0}, "output_dir": "./out"}).notes
    assert {note.key for note in notes if not note.kept} == {note.key for note in notes if "left out: " in note.text}
    assert sum(not note.kept for note in notes) > 10


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, ExitCode.MISSING_INPUT, "No such file"),
        ("- a\n", ExitCode.BAD_CONFIGURATION, "holds no parameters by name"),
        ("a: [", ExitCode.BAD_CONFIGURATION, "not YAML"),
        ("a.b: 1\na: {b: 2}\n", ExitCode.BAD_CONFIGURATION, "a.b: given twice"),
        ("learning_rate: 1.0e-6\n", ExitCode.BAD_CONFIGURATION, "rewardModelPath"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line_and_an_exit_code(
    tmp_path: Path, content: str | None, code: ExitCode, said: str
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    answer = CliRunner().invoke(app, ["convert", str(path)])
    assert answer.exit_code == code
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
