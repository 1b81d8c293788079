"""What each key of a ROLL Reward FL configuration means here. Tables only.

The keys are the fields of ROLL's RewardFLConfig, WorkerConfig, ModelArguments, TrainingArguments, DataArguments and
StrategyArguments, and the arguments of its WanTrainingModule, at the last commit that had Reward FL (7f9d4d38^). A key that is in
none of these tables, and no training parameter, is unknown.
"""

from typing import Any

WORKER = "actor_train"
TRAINING = f"{WORKER}.training_args"
MODEL = f"{WORKER}.model_args"
MODULE = f"{MODEL}.model_config_kwargs"
DATA = f"{WORKER}.data_args"
STRATEGY = f"{WORKER}.strategy_args"

PARAMETER_SECTIONS = ("", f"{TRAINING}.", f"{MODULE}.")
"""Where training parameters stand: at the top (and alone there in the Reward FL document's example), or in one of these."""

ROLL_PARAMETERS = frozenset(
    {
        "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
        "train_batch_size", "max_grad_norm", "max_steps", "seed", "logging_steps", "save_steps",
        "model_name", "model_paths", "model_id_with_origin_paths", "tokenizer_path", "reward_model_path",
        "trainable_models", "lora_base_model", "lora_target_modules", "lora_rank", "extra_inputs",
        "use_gradient_checkpointing", "use_gradient_checkpointing_offload",
        "num_inference_steps", "mid_timestep", "final_timestep", "max_timestep_boundary", "min_timestep_boundary",
    }
)  # fmt: skip
"""Training parameters that ROLL has under the same name: in its training_args, at the top, and in model_config_kwargs."""

ROLL_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 8,
    "warmup_steps": 0,
    "train_batch_size": 8,
    "save_steps": 50,
    "max_steps": 500,
    "min_timestep_boundary": 0.9,
}
"""What ROLL takes where nothing is given, and where this trainer would take something else."""

BECOMES: dict[str, str] = {
    "exp_name": "`metadata.name`, spelt as Kubernetes wants names",
    "output_dir": "left out: results go to `spec.output` (`--results`)",
    "checkpoint_config.output_dir": "left out: checkpoints go to `spec.output`",
    "num_nodes": "`spec.nodes`, where there is no device_mapping",
    "num_gpus_per_node": "`spec.gpusPerNode`: 8 without it, as in ROLL",
    "system_envs": "`env` of the container trainer in `spec.template`; RAY_* and ROLL_* are left out",
    f"{WORKER}.system_envs": "the same",
    "max_ckpt_to_keep": "`saveTotalLimit`; 0, which keeps all, becomes 1000",
    f"{WORKER}.device_mapping": "`spec.nodes` and `spec.gpusPerNode`",
    f"{TRAINING}.warmup_ratio": "`warmupSteps`, of max_steps, where warmup_steps is not given",
    f"{TRAINING}.fp16": "must be false: `dtype` is bf16 or fp32",
    f"{DATA}.file_name": "`spec.dataset`, the table's folder (`--dataset`); the table has to be called metadata.csv",
    f"{MODEL}.dtype": "`dtype`",
    f"{MODEL}.model_type": "must be diffusion_module",
    f"{STRATEGY}.strategy_name": "must be diffusion_deepspeed_train",
    f"{STRATEGY}.strategy_config": "`deepspeed.preset` for ROLL's files by name, `deepspeed.config` for what is written out",
}
"""Keys that become something else than a training parameter of the same name, for the documentation."""

_LANGUAGE = "only language models use it; nothing to do"
_RAY = "Ray's; there is no Ray here, nothing to do"
_HYDRA = "Hydra's; nothing to do"
_PROFILER = "ROLL's profiler; use TensorBoard's metrics, or attach a profiler to the pod"
_ROLLOUT = "ROLL's Reward FL has no inference workers; nothing to do"
_WATCHED = "metrics.jsonl and TensorBoard events are always written to the output"
_DISTRIBUTED = "torchrun's and the operator's; nothing to do"
_LORA = f"ROLL's Reward FL reads lora_base_model, lora_rank and lora_target_modules in {MODULE}; put it there"
_OVERWRITTEN = (
    "ROLL overwrites it with the key of the same name at the top, or that key's default; if it is to count, move it there"
)
_MODEL_CLASS = "another kind of model in ROLL; Reward FL's models are named by model_paths"

WITHOUT_MEANING: dict[str, str] = {
    "defaults": f"{_HYDRA}, since the DeepSpeed presets are known by name",
    "hydra": _HYDRA,
    "global_template": _LANGUAGE,
    "sequence_length": _LANGUAGE,
    "prompt_length": _LANGUAGE,
    "response_length": _LANGUAGE,
    "val_prompt_length": _LANGUAGE,
    "val_sequence_length": _LANGUAGE,
    "report_length_and_rewards": _LANGUAGE,
    "length_profiler_dir": _LANGUAGE,
    "rollout_batch_size": _ROLLOUT,
    "rollout_dump_dir": _ROLLOUT,
    "rollout_mock": _ROLLOUT,
    "val_batch_size": _ROLLOUT,
    "max_running_requests": _ROLLOUT,
    "generate_opt_level": _ROLLOUT,
    "is_num_return_sequences_expand": _ROLLOUT,
    "is_use_additional_prompts": _ROLLOUT,
    "max_additional_running_prompts": _ROLLOUT,
    "user_defined_rollout_loop_cls": _ROLLOUT,
    "router_args": _ROLLOUT,
    "model_update_buffer_size_mb": _ROLLOUT,
    "eval_steps": "ROLL's Reward FL evaluates nothing, and so does the job unless spec.training says so",
    "rpc_timeout": _RAY,
    "local_rank": _DISTRIBUTED,
    "logging_dir": "pods log to their output: kubectl logs",
    "base_dir": "results go to spec.output",
    "track_with": _WATCHED,
    "tracker_kwargs": _WATCHED,
    "profiler_timeline": _PROFILER,
    "profiler_memory": _PROFILER,
    "profiler_output_dir": _PROFILER,
    "is_offload_states": "use a DeepSpeed preset with cpuoffload",
    "is_offload_optimizer_states_in_train_step": "use a DeepSpeed preset with cpuoffload",
    "resume_from_checkpoint": "a job resumes by itself from the last checkpoint in spec.output",
    "model_download_type": "set DIFFSYNTH_DOWNLOAD_SOURCE (huggingface or modelscope) for both containers in spec.template",
    "checkpoint_config.type": "results and checkpoints go to spec.output",
    f"{WORKER}.name": _RAY,
    f"{WORKER}.worker_cls": _RAY,
    f"{WORKER}.pg_variant": _LANGUAGE,
    f"{WORKER}.world_size": "ROLL computes it from device_mapping; spec.nodes and spec.gpusPerNode say it here",
    f"{WORKER}.num_gpus_per_worker": _RAY,
    f"{WORKER}.model_update_frequency": _ROLLOUT,
    f"{WORKER}.infer_batch_size": _ROLLOUT,
    f"{WORKER}.backend_timeout": _DISTRIBUTED,
    f"{WORKER}.max_concurrency": _RAY,
    f"{WORKER}.offload_nccl": _DISTRIBUTED,
    f"{WORKER}.generating_args": _LANGUAGE,
    f"{WORKER}.topr_positive_weight": _LANGUAGE,
    f"{WORKER}.topr_negative_weight": _LANGUAGE,
    f"{WORKER}.use_dynamic_batching_in_train": _LANGUAGE,
    f"{WORKER}.max_tokens_per_microbatch_in_train": _LANGUAGE,
    f"{WORKER}.sequence_length_round_in_train": _LANGUAGE,
    f"{WORKER}.use_dynamic_batching_in_infer": _LANGUAGE,
    f"{WORKER}.max_tokens_per_microbatch_in_infer": _LANGUAGE,
    f"{WORKER}.sequence_length_round_in_infer": _LANGUAGE,
    f"{WORKER}.use_sequence_packing": _LANGUAGE,
    f"{WORKER}.sequence_packing_args": _LANGUAGE,
    f"{WORKER}.logits_in_fp32": _LANGUAGE,
    f"{WORKER}.apply_loss_scale": _LANGUAGE,
    f"{TRAINING}.output_dir": "ROLL overwrites it with output_dir at the top; results go to spec.output",
    f"{TRAINING}.max_steps": _OVERWRITTEN,
    f"{TRAINING}.seed": _OVERWRITTEN,
    f"{TRAINING}.data_seed": "the order of the rows follows from seed",
    f"{TRAINING}.dataloader_num_workers": "videos are prepared before training; nothing to do",
    f"{TRAINING}.bf16": f"{MODEL}.dtype says it",
    f"{TRAINING}.tf32": "PyTorch's own setting is used; nothing to do",
    f"{TRAINING}.save_hf_model": "the LoRA is written in the layouts of spec.training.exportFormats",
    f"{MODEL}.model_name_or_path": _MODEL_CLASS,
    f"{MODEL}.adapter_name_or_path": _MODEL_CLASS,
    f"{MODEL}.attn_implementation": "PyTorch's attention chooses its kernel by itself",
    f"{MODEL}.moe_aux_loss_coef": _LANGUAGE,
    f"{MODEL}.num_labels": _LANGUAGE,
    f"{MODEL}.device_map": _MODEL_CLASS,
    f"{MODEL}.disable_gradient_checkpointing": f"ROLL's Reward FL reads use_gradient_checkpointing in {MODULE}; put it there",
    f"{MODEL}.gradient_checkpointing_use_reentrant": "checkpoints are never reentrant here; nothing to do",
    f"{MODEL}.freeze_module_prefix": "trainable_models says what is trained",
    f"{MODEL}.ulysses_size": _LANGUAGE,
    f"{MODEL}.additional_target": _LORA,
    f"{MODEL}.autocast_adapter_dtype": "LoRA weights are fp32 in every case",
    f"{MODEL}.lora_alpha": _LORA,
    f"{MODEL}.lora_dropout": _LORA,
    f"{MODEL}.lora_rank": _LORA,
    f"{MODEL}.lora_target": _LORA,
    f"{DATA}.template": _LANGUAGE,
    f"{DATA}.domain_interleave_probs": _LANGUAGE,
    f"{DATA}.preprocessing_num_workers": "videos are prepared before training; nothing to do",
    f"{DATA}.eval_file_name": "ROLL's Reward FL evaluates nothing, and so does the job unless spec.training says so",
    f"{DATA}.dataset_type": "the dataset is metadata.csv with the columns video and prompt",
    f"{DATA}.tag": _LANGUAGE,
    f"{DATA}.id": _LANGUAGE,
    f"{DATA}.prompt": "the column of the prompt is called prompt",
    f"{DATA}.response": _LANGUAGE,
    f"{DATA}.messages": _LANGUAGE,
}
"""Keys that ROLL knows and a job has no use for: what to do instead."""
