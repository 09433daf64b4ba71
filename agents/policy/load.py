"""Loads a Hugging Face causal language model with a LoRA adapter, fresh or saved."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from agents.policy import smollm2
from agents.policy.adapter import adapter_config
from agents.policy.batches import out_of_memory
from agents.policy.policy import Policy
from agents.policy.seeds import seeded
from envs.messages import one_line
from envs.types import InputError

EMBEDDED = Path(__file__).parent / "embedded"
ALIASES = {
    "embedded": str(EMBEDDED),
    "smollm2": smollm2.HUB,
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.2",
}
ALLOWED = "give embedded, smollm2, a folder or the name of a model on the Hugging Face hub"
SMALL = 20_000_000  # parameters


@dataclass(frozen=True)
class Lora:
    """Shape of the adapter. Models without these projections get LoRA on all linear layers."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def load_policy(
    name: str,
    *,
    adapter: str | None = None,
    lora: Lora | None = None,
    load_in_4bit: bool = False,
    seed: int = 0,
    batch_size: int = 128,
) -> Policy:
    """Loads a model with a fresh LoRA adapter, or with the weights of a saved one.

    It also changes settings of the whole process: see `show_downloads_alone` and `use_one_thread_if_small`.

    Args:
        name: `embedded`, `smollm2`, `mistral-7b`, a folder, or a name on the hub. Only safetensors are read,
            and no code of the repository is run.
        adapter: folder of a PEFT adapter to start from.
        lora: shape of the adapter, r >= 1; by default that of `adapter`, or else `Lora()`.
        load_in_4bit: NF4 with bitsandbytes, on CUDA only.
        seed: of the adapter's first weights.
        batch_size: sequences in one forward pass, to begin with.

    Raises:
        InputError: there is no such model, or this machine cannot load it.
    """
    where = _location(name)
    adapter_folder = Path(adapter).expanduser() if adapter else None
    lora = lora or (_saved_lora(adapter_folder) if adapter_folder else Lora())
    options = _model_options(load_in_4bit)
    show_downloads_alone()
    try:
        model, tokenizer = _pretrained(name, where, options)
        use_one_thread_if_small(model)
        if load_in_4bit:
            model = prepare_model_for_kbit_training(model)
        policy = Policy(_with_lora(model, lora, seed), tokenizer, batch_size)
        if adapter_folder:
            policy.load(adapter_folder)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"--model {name}: {_no_memory(load_in_4bit)}") from None
    return policy


# Settings of the whole process that loading a model changes.


def show_downloads_alone() -> None:
    """Progress bars for downloads from the hub, unless they are switched off; none for reading from disk."""
    hidden = are_progress_bars_disabled()
    logging.disable_progress_bar()  # those of transformers, and with them those of the hub
    if not hidden:
        enable_progress_bars()


def use_one_thread_if_small(model: Any) -> None:
    """One CPU thread for a small model: sharing its small matrices among threads costs more than it saves."""
    if not torch.cuda.is_available() and model.num_parameters() < SMALL:
        torch.set_num_threads(1)


# The steps of `load_policy`.


def _location(name: str) -> str:
    """A folder, or a name on the hub."""
    if name == "embedded" and not (EMBEDDED / "config.json").is_file():
        raise InputError(
            f"--model embedded: no weights in {EMBEDDED}: make them with python -m agents.pretrain"
        )
    where = ALIASES.get(name, name)
    if name == "smollm2" and (smollm2.folder() / "config.json").is_file():
        where = str(smollm2.folder())
    if where.startswith("~"):
        where = str(Path(where).expanduser())
    looks_like_a_path = where.startswith(".") or Path(where).is_absolute()
    if looks_like_a_path and not Path(where).is_dir():
        raise InputError(f"--model {name}: there is no such folder: {ALLOWED}")
    return where


def _model_options(load_in_4bit: bool) -> dict[str, Any]:
    """Where the model goes and with which numbers: float32 on the CPU, 16 bits on the first GPU."""
    cuda = torch.cuda.is_available()
    if load_in_4bit and (not cuda or importlib.util.find_spec("bitsandbytes") is None):
        raise InputError(
            "--load-in-4bit: needs a CUDA device and bitsandbytes: "
            "pip install '.[gpu]', or leave it out (--no-load-in-4bit)"
        )
    if not cuda:
        return {"dtype": torch.float32}
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": 0}}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return options


def _pretrained(name: str, where: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """The base model and its tokenizer."""
    try:
        # Without an explicit False, transformers asks on the terminal whether to run a repository's code.
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left", trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if out_of_memory(error):
            raise
        # The first line says what is wrong; what follows is advice about transformers' own functions.
        reason = (str(error).strip() or one_line(error)).split("\n")[0]
        fix = ALLOWED
        if where == smollm2.HUB:
            fix = f"make smollm2 (python -m agents.fetch) puts it into {smollm2.folder()}, without a hub"
        raise InputError(f"--model {name}: cannot be loaded: {reason.rstrip(' .:')}: {fix}") from None
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"--model {name}: {len(missing)} of its weights are missing, such as {missing[0]}: "
            "give a complete causal language model"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"--model {name}: its tokenizer has no end-of-sequence token: "
            "set eos_token in its tokenizer_config.json"
        )
    return model, tokenizer


def _no_memory(load_in_4bit: bool) -> str:
    if not torch.cuda.is_available():
        return "too large for the memory of this machine: choose a smaller model"
    if load_in_4bit:
        return "too large for the GPU's free memory: free some, or choose a smaller model"
    return "too large for the GPU's free memory: use --load-in-4bit, free some, or choose a smaller model"


def _with_lora(model: Any, lora: Lora, seed: int) -> Any:
    """The PEFT model with a fresh adapter; its first weights depend on the seed alone."""
    layer_names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets: list[str] | str = "all-linear"
    if layer_names.issuperset(lora.targets):
        targets = list(lora.targets)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with seeded("lora", seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers by a name that will go
        return get_peft_model(model, config)


def _saved_lora(folder: Path) -> Lora:
    saved, default = adapter_config(folder), Lora()
    targets = saved.get("target_modules")
    return Lora(
        saved.get("r", default.r),
        saved.get("lora_alpha", default.alpha),
        saved.get("lora_dropout", default.dropout),
        tuple(targets) if isinstance(targets, list) else default.targets,
    )
