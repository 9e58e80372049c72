"""A DeepSpeed JSON file as it is written for DeepSpeed or the Hugging Face Trainer (`"auto"` is what the recipe says)."""

import difflib
import json
from pathlib import Path
from typing import Any

from lineage.errors import BadInput
from training.launch_files import AUTO, Said, as_choice

# Keys whose meaning is the recipe's, by the name of the field that must agree.
RECIPE = {
    "train_batch_size": "rows_per_step",
    "train_micro_batch_size_per_gpu": "rows of each process at a time",
    "gradient_accumulation_steps": "accumulation",
    "gradient_clipping": "max_grad_norm",
}
OPTIMIZER = {"lr": "learning_rate", "betas": "betas", "weight_decay": "weight_decay"}
SCHEDULER = {"warmup_num_steps": "warmup_steps", "warmup_max_lr": "learning_rate", "total_num_steps": "steps"}
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "wsd", "WarmupCosineLR": "cosine"}
# How DeepSpeed goes about it, not what it computes: given to it as written.
EXECUTION = {"communication_data_type", "prescale_gradients", "gradient_predivide_factor"}
ZERO_EXECUTION = {
    "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter", "reduce_bucket_size",
    "contiguous_gradients", "use_multi_rank_bucket_allreduce", "round_robin_gradients", "sub_group_size",
    "ignore_unused_parameters", "memory_efficient_linear", "stage3_prefetch_bucket_size", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential",
}  # fmt: skip
UNUSED = {
    "steps_per_print", "wall_clock_breakdown", "dump_state", "flops_profiler", "tensorboard", "wandb", "csv_monitor",
    "comet", "comms_logger", "checkpoint", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio",
    "activation_checkpointing", "sparse_gradients",
}  # fmt: skip
ZERO_UNUSED = {
    "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save", "load_from_fp32_weights",
    "elastic_checkpoint",
}  # fmt: skip
SECTIONS = {"zero_optimization", "bf16", "bfloat16", "fp16", "optimizer", "scheduler", "data_types"}
PLACEMENT = {"stage", "offload_optimizer", "offload_param"}


def read_deepspeed(path: Path) -> Said:
    """Returns what a DeepSpeed file says.

    Raises:
        BadInput: it cannot be read, or holds a key that is unknown, or that Goldpath cannot follow.
    """
    values, said = _read(path), Said(path)
    known = {*RECIPE, *EXECUTION, *UNUSED, *SECTIONS}
    for key, value in values.items():
        if key not in known:
            raise _unknown(said, "", key, known)
        if key in RECIPE:
            said.training[RECIPE[key]] = (value, key)
        elif key in UNUSED:
            said.unused.append(key)
    _read_zero(said, said.section(values, "zero_optimization"))
    _read_precision(said, values)
    if "optimizer" in values:
        _read_optimizer(said, said.section(values, "optimizer"))
    if "scheduler" in values:
        _read_scheduler(said, said.section(values, "scheduler"))
    accumulated = said.section(values, "data_types").get("grad_accum_dtype", AUTO)
    as_choice(said, "data_types.grad_accum_dtype", accumulated, {AUTO: 0, "fp32": 0})
    return said


def execution_options(path: str) -> dict[str, Any]:
    """Returns the settings of a file that DeepSpeed gets as they are written; {} without a file."""
    if not path:
        return {}
    values = _read(Path(path))
    zero = {
        key: value for key, value in values.get("zero_optimization", {}).items() if key in ZERO_EXECUTION and value != AUTO
    }
    passed = {key: value for key, value in values.items() if key in EXECUTION and value != AUTO}
    return {**passed, "zero_optimization": zero}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(path, "", f"cannot be read ({error.strerror})", "give the path of an existing file") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(path, "", f"is not JSON ({error})", "correct it") from None
    if not isinstance(value, dict):
        raise BadInput(path, "", "does not hold a JSON object", "give a DeepSpeed configuration file")
    return value


def _unknown(said: Said, section: str, key: str, known: set[str]) -> BadInput:
    near = difflib.get_close_matches(key, known, n=1)
    fix = f"did you mean `{near[0]}`?" if near else "remove it"
    return said.refuse(section + key, "is no option that Goldpath knows", fix)


def _read_zero(said: Said, zero: dict[str, Any]) -> None:
    stage = as_choice(said, "zero_optimization.stage", zero.get("stage", 0), {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"})
    said.resources["engine"] = (stage, "zero_optimization.stage")
    for key in zero:
        if key in ZERO_UNUSED:
            said.unused.append(f"zero_optimization.{key}")
        elif key not in PLACEMENT | ZERO_EXECUTION:
            raise _unknown(said, "zero_optimization.", key, PLACEMENT | ZERO_EXECUTION | ZERO_UNUSED)
    places = {}
    for key in ("offload_optimizer", "offload_param"):
        device = said.section(zero, f"zero_optimization.{key}").get("device", "none")
        places[key] = as_choice(said, f"zero_optimization.{key}.device", device, {"none": False, "cpu": True, AUTO: False})
    if places["offload_param"] and not places["offload_optimizer"]:
        problem = "is `cpu` while offload_optimizer is not"
        raise said.refuse("zero_optimization.offload_param.device", problem, "offload the optimizer's state too")
    offload = "all" if places["offload_param"] else "optimizer" if places["offload_optimizer"] else "none"
    key = "offload_param" if offload == "all" else "offload_optimizer"
    said.resources["offload"] = (offload, f"zero_optimization.{key}")


def _read_precision(said: Said, values: dict[str, Any]) -> None:
    enabled: dict[str, bool | str] = {"fp16": False, "bf16": False}
    for section in ("fp16", "bf16", "bfloat16"):
        options = said.section(values, section)
        name = section.replace("bfloat16", "bf16")
        asked = as_choice(said, f"{section}.enabled", options.get("enabled", False), {True: True, False: False, AUTO: AUTO})
        enabled[name] = enabled[name] or asked
        if section == "fp16" and options.get("loss_scale", 0) not in (0, AUTO) and asked:
            raise said.refuse("fp16.loss_scale", "is a fixed scale, and Goldpath's is dynamic", "write 0")
        said.unused += [f"{section}.{option}" for option in options if option not in ("enabled", "loss_scale")]
    chosen = [name for name, value in enabled.items() if value is True]
    if len(chosen) == 2:
        raise said.refuse("fp16.enabled", "is true, and so is bf16.enabled", "choose one")
    if chosen:
        said.training["precision"] = (chosen[0], f"{chosen[0]}.enabled")
    elif AUTO not in enabled.values() and {"fp16", "bf16", "bfloat16"} & values.keys():
        said.training["precision"] = ("fp32", "fp16.enabled, bf16.enabled")


def _read_optimizer(said: Said, optimizer: dict[str, Any]) -> None:
    as_choice(said, "optimizer.type", optimizer.get("type", "AdamW"), {"AdamW": 0, "Adam": 0, AUTO: 0})
    for key, value in said.section(optimizer, "optimizer.params").items():
        if key in OPTIMIZER:
            said.training[OPTIMIZER[key]] = (tuple(value) if isinstance(value, list) else value, f"optimizer.params.{key}")
        elif key == "eps":
            as_choice(said, "optimizer.params.eps", value, {AUTO: 0, 1e-8: 0})
        else:
            said.unused.append(f"optimizer.params.{key}")
    said.training["optimizer"] = ("adamw", "optimizer.type")


def _read_scheduler(said: Said, scheduler: dict[str, Any]) -> None:
    schedule = as_choice(said, "scheduler.type", scheduler.get("type", AUTO), {**SCHEDULES, AUTO: AUTO})
    said.training["schedule"] = (schedule, "scheduler.type")
    for key, value in said.section(scheduler, "scheduler.params").items():
        if key in SCHEDULER:
            said.training.setdefault(SCHEDULER[key], (value, f"scheduler.params.{key}"))
        elif key == "warmup_min_lr":
            as_choice(said, "scheduler.params.warmup_min_lr", value, {AUTO: 0, 0: 0})
        else:
            said.unused.append(f"scheduler.params.{key}")
