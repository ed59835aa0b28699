"""Keys that people bring from elsewhere: keys of another stage, and keys of TRL that do not exist here."""

from __future__ import annotations

from rewards.config import paths
from rlhf.config import STAGES

INSTEAD: dict[str, str] = {
    "precompute_ref_log_probs": "use `reference.source: precomputed`",
    "precompute_ref_batch_size": "precomputing takes `train.per_device_eval_batch_size`",
    "sync_ref_model": "use `reference.source: synced`",
    "fsdp_config": "`train.fsdp: true` cuts each layer, and again after its forward pass",
    "dataset_text_field": "rename the column: `data.datasets: [{path: ..., columns: {YOURS: text}}]`",
    "packing_strategy": "`train.packing` is best fit decreasing, and cuts rows at max_length",
    "eval_packing": "held-out figures do not depend on what stands beside a row: `train.packing` is for training",
    "padding_free": "models that can take rows without padding are given them so",
    "test_split_size": "use `data.holdout_fraction`",
    "fp16": "use `train.bf16`; float16 compute needs a loss scaler and is not implemented yet",
    "reward_model_name_or_path": "use `reward.reward_funcs: [{fn: model:FOLDER}]`",
    "eval_on_start": "for sampled answers, use `evaluation.before`",
    "optim": "the optimiser is AdamW",
    "data_seed": "`train.seed` is the seed of everything",
    "full_determinism": "runs on one machine with one number of threads repeat themselves; set `train.seed`",
    "remove_unused_columns": "columns are always kept for the reward functions",
    "shuffle_dataset": "rows are always taken in a new random order per epoch",
    "do_train": "the command says what is done",
    "do_eval": "use `train.eval_strategy`",
    "do_predict": "use `evaluation.prompts`",
    "generation_batch_size": "each step samples anew; for several steps on one set, use `train.num_iterations`",
    "steps_per_generation": "each step samples anew; for several steps on one set, use `train.num_iterations`",
    "label_smoothing_factor": "for DPO, use `train.label_smoothing`",
    "log_completions": "the ledger keeps every completion",
    "use_bias_correction_kl": "use `reference.kl.ratio`; true is `live` (preset trl_grpo), false `none` (grpo_paper)",
}

NOT_IMPLEMENTED: dict[str, str] = {
    "TrainingArguments": """
        accelerator_config activation_checkpointing activation_checkpointing_kwargs auto_find_batch_size
        average_tokens_across_devices batch_eval_metrics bf16_full_eval dataloader_drop_last dataloader_in_order
        dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
        dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
        ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm enable_jit_checkpoint
        eval_accumulation_steps eval_delay eval_do_concat_batches eval_use_gather_object fp16_full_eval
        gradient_checkpointing_kwargs hub_always_push hub_model_id hub_private_repo hub_revision
        hub_strategy hub_token ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names
        length_column_name liger_kernel_config load_best_model_at_end local_rank log_level log_level_replica
        log_on_each_node logging_first_step logging_nan_inf_filter logging_strategy lr_scheduler_kwargs
        optim_args optim_target_modules parallelism_config prediction_loss_only push_to_hub
        restore_callback_states_from_checkpoint save_on_each_node save_only_model skip_memory_metrics tf32
        torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
        trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_liger_kernel
    """,
    "SFTConfig": """
        activation_offloading dataset_kwargs dataset_num_proc eos_token model_init_kwargs pad_to_multiple_of
        pad_token router_aux_loss_coef truncation_mode
    """,
    "RewardConfig": """
        disable_dropout
    """,
    "GRPOConfig": """
        cache_implementation cast_lm_head_to_fp32 chat_template_kwargs delta ds3_gather_for_generation entropy_coef
        entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target generation_kwargs
        importance_sampling_level log_completions_hub_repo log_multimodal log_unique_prompts
        max_tool_calling_iterations min_p multi_objective_aggregation num_completions_to_print num_generations_eval
        off_policy_mask_threshold repetition_penalty sapo_temperature_neg sapo_temperature_pos top_entropy_quantile
        top_k transformers_continuous_batching_config use_adaptive_entropy
        use_transformers_continuous_batching use_transformers_paged use_vllm vespo_k_neg vespo_k_pos
        vespo_lambda_neg vespo_lambda_pos vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port
        vllm_importance_sampling_cap vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
        vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_max_model_length vllm_mode
        vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
        vllm_structured_outputs_regex vllm_tensor_parallel_size
    """,
    "RLOOConfig": """
        normalize_advantages reward_clip_range
    """,
    "ModelConfig": """
        bnb_4bit_quant_storage bnb_4bit_quant_type load_in_4bit load_in_8bit lora_modules_to_save
        lora_target_parameters lora_task_type use_bnb_nested_quant use_dora use_rslora
    """,
    "ScriptArguments": """
        dataset_streaming ignore_bias_buffers
    """,
    "DatasetMixtureConfig": """
        streaming
    """,
}


def known_elsewhere(stage: str) -> dict[str, str]:
    """{leaf or path: message} for a stage: keys of other stages, and keys of TRL that do not exist here."""
    messages = {
        leaf: f"`{leaf}` is a key of TRL ({owner}) that is not implemented"
        for owner, leaves in NOT_IMPLEMENTED.items()
        for leaf in leaves.split()
    }
    messages |= {leaf: f"`{leaf}` is a key of TRL that does not exist here: {hint}" for leaf, hint in INSTEAD.items()}
    homes: dict[str, list[str]] = {}
    for name, model in STAGES.items():
        for key in {spelling: None for path in paths(model) for spelling in (path, path.rpartition(".")[2])}:
            homes.setdefault(key, []).append(name)
    return messages | {
        key: f"`{key}` does not apply to {stage}; it is a key of {', '.join(names)}"
        for key, names in homes.items()
        if stage not in names
    }
