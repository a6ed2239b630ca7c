"""Engine arguments of vLLM, split into those that can change a caption and neutral ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTEXT = "max_model_len"
"""Maximum tokens of a request. It changes only the captions of the windows that it reduces."""
STEP_TOKENS = "max_num_batched_tokens"
"""Maximum tokens in one step of the engine. Neutral except for windows whose video does not fit in one step."""
REFERENCE_STEP_TOKENS = 32768
"""The reference's value (NeMo Curator). Do not change it: fingerprints assume it."""

_PLACEMENT = frozenset(
    {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local"}
    | {"data_parallel_rank", "data_parallel_start_rank", "data_parallel_address", "data_parallel_rpc_port"}
    | {"data_parallel_hybrid_lb", "data_parallel_external_lb", "data_parallel_multi_port_external_lb"}
    | {"data_parallel_backend", "enable_expert_parallel", "expert_placement_strategy", "enable_eplb", "eplb_config"}
    | {"distributed_executor_backend", "master_addr", "master_port", "nnodes", "node_rank", "device_ids"}
    | {"distributed_timeout_seconds", "cpu_distributed_timeout_seconds", "disable_custom_all_reduce"}
    | {"numa_bind", "numa_bind_nodes", "numa_bind_cpus", "mm_encoder_tp_mode", "ray_workers_use_nsight"}
    | {"max_parallel_loading_workers", "fully_sharded_loras"}
)
"""Placement of the model's parts on processes, devices and machines."""
_MEMORY = frozenset(
    {"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "watermark", "block_size"}
    | {"cpu_offload_gb", "cpu_offload_params", "offload_backend", "offload_group_size", "offload_num_in_group"}
    | {"offload_prefetch_step", "offload_params", "mm_processor_cache_gb", "mm_processor_cache_type"}
    | {"mm_shm_cache_max_object_size_mb", "mm_ipc_gpu_memory_gb", "mm_tensor_ipc", "enable_shm_tensor_arena"}
    | {"skip_mm_profiling", "enable_sleep_mode", "enable_cumem_allocator", "disable_hybrid_kv_cache_manager"}
    | {"max_loras", "max_cpu_loras"}
)
"""Sizes and places of caches and buffers."""
_CACHING = frozenset(
    {"enable_prefix_caching", "prefix_caching_hash_algo", "prefix_cache_retention_interval", "mm_hasher_algorithm"}
)
"""Caching of results."""
_SCHEDULING = frozenset(
    {STEP_TOKENS, "max_num_scheduled_tokens", "max_num_seqs", "max_num_active_seqs"}
    | {"max_num_queued_reqs", "max_num_queued_tokens", "long_prefill_token_threshold"}
    | {"long_prefill_token_threshold_adaptive", "enable_chunked_prefill", "disable_chunked_mm_input"}
    | {"scheduler_reserve_full_isl", "prefill_schedule_interval", "async_scheduling", "stream_interval"}
    | {"renderer_num_workers", "enable_dbo", "ubatch_size", "dbo_decode_token_threshold"}
    | {"dbo_prefill_token_threshold"}
)
"""Batching and order of the work."""
_COMPILATION = frozenset(
    {"enforce_eager", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "disable_cascade_attn"}
)
"""Ways to launch the same operations."""
_LOADING = frozenset(
    {"download_dir", "safetensors_prefetch_num_threads", "safetensors_prefetch_block_size", "use_tqdm_on_load"}
)
"""Reading the model's files."""
_OBSERVATION = frozenset(
    {"disable_log_stats", "aggregate_engine_logging", "enable_log_requests", "served_model_name", "max_logprobs"}
    | {"logprobs_mode", "show_hidden_metrics_for_version", "otlp_traces_endpoint", "collect_detailed_traces"}
    | {"per_request_spec_decode_metrics", "kv_cache_metrics", "kv_cache_metrics_sample", "custom_histogram_buckets"}
    | {"cudagraph_metrics", "enable_layerwise_nvtx_tracing", "enable_mfu_metrics", "enable_logging_iteration_details"}
    | {"jit_monitor_mode", "jit_monitor_verbose", "enable_mm_processor_stats", "profiler_config", "kv_events_config"}
    | {"logging_config", "log_level", "log_config_file", "shutdown_timeout"}
)
"""Logs, metrics, names, and the engine's shutdown."""
NEUTRAL = _PLACEMENT | _MEMORY | _CACHING | _SCHEDULING | _COMPILATION | _LOADING | _OBSERVATION
"""Arguments of vLLM 0.32's ``AsyncEngineArgs`` that do not change captions.

They may change the order of additions, and so the last bits of a sum. The load does that too, since batches vary from
run to run, and no caption is regenerated for it. Arguments that select another kernel, number format or loader are not
neutral, and neither are arguments that later versions of vLLM add.
"""


def non_neutral(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that can change a caption."""
    return {name: value for name, value in arguments.items() if name not in NEUTRAL}
