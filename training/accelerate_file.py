"""A file as `accelerate config` writes it: how many processes, which engine, in which precision."""

from pathlib import Path
from typing import Any

from lineage.section import read_yaml
from training.launch_files import AUTO, Said, as_choice

ENGINES = {"NO": "single", "MULTI_CPU": "ddp", "MULTI_GPU": "ddp", "FSDP": "fsdp2", "DEEPSPEED": ""}
PRECISIONS = {"no": "fp32", None: AUTO, "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
READ = {"compute_environment", "distributed_type", "num_processes", "mixed_precision", "use_cpu", "dynamo_config",
        "dynamo_backend", "fsdp_config", "deepspeed_config"}  # fmt: skip
# Where the processes meet is torchrun's to know; the rest concerns devices and launchers that are not used here. Each with
# the values that say nothing.
UNUSED: dict[str, tuple[Any, ...]] = {
    "num_machines": (1,), "machine_rank": (0,), "main_process_ip": (None,), "main_process_port": (None,),
    "rdzv_backend": ("static", "c10d", None), "same_network": (True, False, None), "main_training_function": ("main", None),
    "gpu_ids": ("all", None), "debug": (False,), "enable_cpu_affinity": (False,), "downcast_bf16": ("no", False),
    "tpu_env": ([], None), "tpu_use_cluster": (False,), "tpu_use_sudo": (False,), "tpu_name": (None,), "tpu_vm": (None,),
    "command_file": (None,), "commands": (None,), "tpu_zone": (None,),
}  # fmt: skip
ELSEWHERE = ("fp8_config", "megatron_lm_config", "parallelism_config", "mpirun_config", "ipex_config")
FSDP_UNUSED = {
    "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params", "backward_prefetch", "backward_prefetch_policy",
    "forward_prefetch", "state_dict_type", "sync_module_states", "use_orig_params", "cpu_ram_efficient_loading",
}  # fmt: skip
DEEPSPEED_UNUSED = {"zero3_init_flag", "zero3_save_16bit_model", "deepspeed_multinode_launcher", "deepspeed_hostfile",
                    "deepspeed_inclusion_filter", "deepspeed_exclusion_filter"}  # fmt: skip
STAGES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}


def read_accelerate(path: Path) -> Said:
    """Returns what an accelerate file says; a DeepSpeed file that it names is left to `read_deepspeed`.

    Raises:
        BadInput: it cannot be read, or holds a key that is unknown, or that Goldpath cannot follow.
    """
    values, said = read_yaml(path), Said(path)
    for key, value in values.items():
        if key in UNUSED:
            said.unused += [key] if value not in UNUSED[key] else []
        elif key in ELSEWHERE and value:
            raise said.refuse(key, "is for what Goldpath does not have", "remove it")
        elif key not in READ and key not in ELSEWHERE:
            raise said.refuse(key, "unknown key", "remove it")
    environment = values.get("compute_environment", "LOCAL_MACHINE")
    as_choice(said, "compute_environment", environment, {"LOCAL_MACHINE": 0})
    kind = values.get("distributed_type", "NO")
    engine = as_choice(said, "distributed_type", "NO" if kind is False else kind, ENGINES)  # YAML reads a bare NO as false
    if engine:
        said.resources["engine"] = (engine, "distributed_type")
    if "num_processes" in values or engine == "single":
        said.resources["processes"] = (values.get("num_processes", 1), "num_processes")
    if kind == "MULTI_GPU":
        said.resources["device"] = ("cuda", "distributed_type")
    if values.get("use_cpu") or kind == "MULTI_CPU":
        said.resources["device"] = ("cpu", "use_cpu")
    precision = values.get("mixed_precision")
    said.training["precision"] = (
        as_choice(said, "mixed_precision", "no" if precision is False else precision, PRECISIONS), "mixed_precision"
    )  # fmt: skip
    _read_dynamo(said, values)
    if engine == "fsdp2":
        _read_fsdp(said, said.section(values, "fsdp_config"))
    if kind == "DEEPSPEED":
        _read_deepspeed(said, said.section(values, "deepspeed_config"))
    return said


def _read_dynamo(said: Said, values: dict[str, Any]) -> None:
    options = said.section(values, "dynamo_config")
    backend = str(options.get("dynamo_backend", values.get("dynamo_backend", "no"))).lower()
    compiles = as_choice(said, "dynamo_config.dynamo_backend", backend, {"no": False, "false": False, "inductor": True})
    said.resources["compile"] = (compiles, "dynamo_config.dynamo_backend")
    if compiles:
        mode = options.get("dynamo_mode", "default")
        as_choice(said, "dynamo_config.dynamo_mode", mode, {"default": 0})
        said.unused += [f"dynamo_config.{key}" for key in options if key not in ("dynamo_backend", "dynamo_mode")]


def _read_fsdp(said: Said, options: dict[str, Any]) -> None:
    for written, value in options.items():
        name, key = written.removeprefix("fsdp_"), f"fsdp_config.{written}"
        if name == "version":
            said.unused += [key] if value == 1 else []
            as_choice(said, key, value, {1: 0, 2: 0})
        elif name in ("sharding_strategy", "reshard_after_forward"):
            as_choice(said, key, value, {"FULL_SHARD": 0, 1: 0})
        elif name == "offload_params":
            said.resources["offload"] = ("all" if value else "none", key)
        elif name == "activation_checkpointing":
            said.resources["activation_checkpointing"] = ("full" if value else "none", key)
        elif name in FSDP_UNUSED:
            said.unused.append(key)
        else:
            raise said.refuse(key, "unknown key", "remove it")


def _read_deepspeed(said: Said, options: dict[str, Any]) -> None:
    if "deepspeed_config_file" in options:
        path = (said.path.parent / str(options["deepspeed_config_file"])).resolve()
        said.resources["deepspeed_config"] = (str(path), "deepspeed_config.deepspeed_config_file")
        said.unused += [f"deepspeed_config.{key}" for key in options if key != "deepspeed_config_file"]
        return
    place = {"none": False, None: False, "cpu": True}
    keys = {name: f"deepspeed_config.{name}" for name in options}
    for name, value in options.items():
        if name == "zero_stage":
            said.resources["engine"] = (as_choice(said, keys[name], value, STAGES), keys[name])
        elif name == "gradient_accumulation_steps":
            said.training["accumulation"] = (value, keys[name])
        elif name == "gradient_clipping":
            said.training["max_grad_norm"] = (value, keys[name])
        elif name in DEEPSPEED_UNUSED:
            said.unused.append(keys[name])
        elif name not in ("offload_optimizer_device", "offload_param_device"):
            raise said.refuse(keys[name], "unknown key", "remove it")
    if "zero_stage" not in options:
        said.resources["engine"] = ("zero2", "deepspeed_config.zero_stage")  # accelerate's default
    state = as_choice(said, "deepspeed_config.offload_optimizer_device", options.get("offload_optimizer_device"), place)
    weights = as_choice(said, "deepspeed_config.offload_param_device", options.get("offload_param_device"), place)
    offload = "all" if weights else "optimizer" if state else "none"
    said.resources["offload"] = (offload, f"deepspeed_config.offload_{'param' if weights else 'optimizer'}_device")
