"""A run's configuration in the words of TRL and transformers: device, precision, accumulation, schedule, checkpoints.

Decides what `auto` means on this machine. Knows no data and trains nothing.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import BitsAndBytesConfig

from training.config import FitConfig
from training.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process can use."""

    has_gpu: bool
    has_bf16: bool
    processes: int = 1
    """Processes of the run; `torchrun` starts more than one."""


def here(config: FitConfig) -> tuple[Machine, PartialState]:
    """This machine, as far as the configuration lets it be used, and this process among the run's."""
    has_gpu = torch.cuda.is_available() and config.trl.device == "auto"
    state = PartialState(cpu=not has_gpu)
    has_bf16 = has_gpu and torch.cuda.is_bf16_supported()
    return Machine(has_gpu, has_bf16, state.num_processes), state


def precision_of(config: FitConfig, machine: Machine) -> str:
    """`fp32`, `bf16`, `fp16` or `nf4`.

    Raises:
        ConfigError: the machine has not got it.
    """
    chosen = config.trl.precision
    if chosen == "nf4" and not machine.has_gpu:
        raise ConfigError(
            "trl.precision = 'nf4': needs a CUDA GPU (bitsandbytes); allowed here: auto, fp32, bf16"
        )
    if chosen == "auto":
        return "bf16" if machine.has_bf16 else "fp32"
    if chosen == "fp16" and not machine.has_gpu:
        raise ConfigError("trl.precision = 'fp16': needs a GPU; allowed here: auto, fp32, bf16")
    if chosen == "bf16" and machine.has_gpu and not machine.has_bf16:
        raise ConfigError(
            "trl.precision = 'bf16': this GPU has none; allowed here: auto, fp32, fp16"
        )
    return chosen


def four_bit(machine: Machine) -> BitsAndBytesConfig:
    """How bitsandbytes keeps the frozen base model: 4-bit NormalFloat, its scales quantised again (Dettmers et al. 2023)."""
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if machine.has_bf16 else torch.float16,
    )


def load_four_bit(path: str, config: FitConfig) -> Any:
    """The base model in 4 bits on this process's GPU, ready for LoRA.

    Raises:
        ConfigError: there is no CUDA GPU, or bitsandbytes is not installed.
    """
    machine, state = here(config)
    precision_of(config, machine)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("trl.precision = 'nf4': needs the package bitsandbytes")
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=four_bit(machine), device_map={"": state.local_process_index}
    )
    checkpointing = config.trl.checkpointing is not False
    return prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
        model, use_gradient_checkpointing=checkpointing
    )


def accumulation(config: FitConfig, machine: Machine, device_batch: int) -> int:
    """Forward passes a step, so that a step sees `batch_size` rows over all processes.

    Raises:
        ConfigError: `batch_size` cannot be made of equal parts.
    """
    at_once = device_batch * machine.processes
    if config.batch_size % at_once:
        raise ConfigError(
            f"batch_size = {config.batch_size}: allowed: a multiple of {at_once} "
            f"({device_batch} rows at once on each of {machine.processes} processes; trl.device_batch)"
        )
    return config.batch_size // at_once


def arguments(
    config: FitConfig,
    machine: Machine,
    folder: Path,
    *,
    device_batch: int,
    steps: int,
    epochs: int,
    learning_rate: float,
) -> dict[str, Any]:
    """Keyword arguments that SFTConfig and DPOConfig have in common.

    Args:
        steps: of the whole run, for the warm-up.
    """
    precision = precision_of(config, machine)
    checkpointing = config.trl.checkpointing
    return {
        "output_dir": str(folder / "checkpoints"),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": device_batch,
        "per_device_eval_batch_size": device_batch,
        "gradient_accumulation_steps": accumulation(config, machine, device_batch),
        "learning_rate": learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(
            config.optimizer.schedule, config.optimizer.schedule
        ),
        "warmup_steps": max(1, round(config.optimizer.warmup_share * steps)),
        "weight_decay": config.optimizer.weight_decay,
        "adam_beta2": 0.98,
        "max_grad_norm": config.optimizer.max_norm,
        "optim": "adamw_torch",
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": not machine.has_gpu,
        "bf16": precision == "bf16" or (precision == "nf4" and machine.has_bf16),
        "fp16": precision == "fp16" or (precision == "nf4" and not machine.has_bf16),
        "gradient_checkpointing": machine.has_gpu if checkpointing is None else checkpointing,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is no number is shown as such
        "save_strategy": "steps",
        "save_steps": config.trl.save_steps,
        "save_total_limit": 1,
        "eval_strategy": "no",  # validation is ours: the same figures as of the other engine
        "report_to": "none",  # the curves are ours, validation among them
        "disable_tqdm": True,
        "dataloader_pin_memory": machine.has_gpu,
    }


def largest_batch(wanted: int, fits: Callable[[int], bool]) -> int:
    """The largest divisor of `wanted` that `fits(rows)` says yes to, so that accumulation stays whole.

    Raises:
        ConfigError: not even one row fits.
    """
    for rows in range(wanted, 0, -1):
        if wanted % rows == 0 and fits(rows):
            return rows
    raise ConfigError(
        "not even one row fits on the device: lower max_input_chars, or take a smaller base model"
    )
