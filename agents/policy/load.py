"""Loads a Hugging Face causal language model with a LoRA adapter, fresh or saved."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.utils import logging

from agents.policy.policy import Policy, adapter_config
from agents.policy.seeds import seeded
from envs.types import InputError

EMBEDDED = Path(__file__).parent / "embedded"
ALIASES = {"embedded": str(EMBEDDED), "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.2"}
SMALL = 20_000_000  # parameters


@dataclass(frozen=True)
class Lora:
    """The documented adapter. Models without these projections get LoRA on all linear layers."""

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

    Args:
        name: `embedded`, `mistral-7b`, a hub name or a folder. Safetensors only, and no code of the repository is run.
        adapter: folder of a PEFT adapter to start from.
        lora: shape of the adapter, r >= 1; by default that of `adapter`, else the documented one.
        load_in_4bit: NF4 with bitsandbytes, on CUDA only.
        seed: of the adapter's first weights.
        batch_size: sequences in one forward pass, to begin with.

    Raises:
        InputError: no such model, or it needs what this machine lacks.
    """
    logging.disable_progress_bar()
    where = ALIASES.get(name, name)
    if name == "embedded" and not (EMBEDDED / "config.json").is_file():
        raise InputError(
            f"--model embedded: no weights in {EMBEDDED}: make them with python -m agents.pretrain"
        )
    if (Path(where).is_absolute() or where.startswith((".", "~"))) and not Path(where).is_dir():
        raise InputError(
            f"--model {name}: there is no such folder: give embedded, a folder or a reachable hub name"
        )
    lora = lora or (_saved_lora(adapter) if adapter else Lora())
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch.float32}
    if cuda:
        options["dtype"] = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        options["device_map"] = {"": 0}
    if load_in_4bit:
        if not cuda or importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                "--load-in-4bit: needs a CUDA device and bitsandbytes: pip install '.[gpu]', or --no-load-in-4bit"
            )
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
    try:
        # Without an explicit False, transformers would ask on the terminal whether to run a repository's code.
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left", trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(" .:")
        raise InputError(
            f"--model {name}: cannot be loaded: {reason}: give embedded, a folder or a reachable hub name"
        ) from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"--model {name}: {len(missing)} weights are missing, such as {missing[0]}: give a complete causal language model"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"--model {name}: its tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json"
        )
    if not cuda and model.num_parameters() < SMALL:
        torch.set_num_threads(
            1
        )  # matrices this small gain nothing from more, and on a busy machine waiting threads cost seconds a step
    if load_in_4bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model)
    names = {module.rpartition(".")[2] for module, _ in model.named_modules()}
    targets = list(lora.targets) if names.issuperset(lora.targets) else "all-linear"
    with seeded("lora", seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will go
        peft_model = get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )
    policy = Policy(peft_model, tokenizer, batch_size)
    if adapter:
        policy.load(Path(adapter))
    return policy


def _saved_lora(folder: str | Path) -> Lora:
    saved, default = adapter_config(folder), Lora()
    targets = saved.get("target_modules")
    return Lora(
        saved.get("r", default.r),
        saved.get("lora_alpha", default.alpha),
        saved.get("lora_dropout", default.dropout),
        tuple(targets) if isinstance(targets, list) else default.targets,
    )
