"""Loads a Hugging Face causal language model with a LoRA adapter, fresh or saved."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from agents.policy import smollm2
from agents.policy.batches import out_of_memory
from agents.policy.compute import Compute, on_cpu
from agents.policy.folders import ALLOWED, check_adapter, check_model
from agents.policy.labels import read_labels
from agents.policy.lora import Lora, saved_lora, with_lora
from agents.policy.names import ALIASES, EMBEDDED, SMOLLM2
from agents.policy.policy import BATCH_SIZE, Policy
from agents.policy.tokens import Shots
from envs.hub import find_hub
from envs.messages import one_line
from envs.types import InputError


def load_policy(
    name: str,
    *,
    adapter: str | None = None,
    lora: Lora | None = None,
    load_in_4bit: bool = False,
    dtype: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    chat_options: Mapping[str, Any] | None = None,
    prefill: str | None = None,
    shots: Shots | None = None,
) -> Policy:
    """Loads a model with a fresh LoRA adapter, or with the weights of a saved one.

    It also changes settings of the whole process: see `show_downloads_alone`, and `threads`.

    Args:
        name: `embedded`, `embedded-hard`, `smollm2`, `mistral-7b`, a folder, or a name on the hub. Only
            safetensors are read, and no code of the repository is run.
        adapter: folder of a PEFT adapter to start from.
        lora: shape of the adapter, r >= 1; by default that of `adapter`, or else `Lora()`.
        load_in_4bit: NF4 with bitsandbytes, on CUDA only.
        dtype: `float32`, `bfloat16`, or `auto`: the faster on a CPU, 16 bits on a GPU.
        threads: of the CPU; by default one for a small model, and otherwise what is faster.
        seed: of the adapter's first weights.
        batch_size: sequences in one forward pass, to begin with.
        chat_options: variables of the chat template, see `agents.policy.chat.read_options`.
        prefill: how every command begins; by default as the domain says.
        shots: examples that stand before prompts, see `agents.evaluation.shots`.

    Raises:
        InputError: there is no such model, or this machine cannot load it.
    """
    check_model(name)
    where = location(name)
    adapter_folder = Path(adapter).expanduser() if adapter else None
    if adapter_folder:
        check_adapter(adapter_folder, name)
    lora = lora or (saved_lora(adapter_folder) if adapter_folder else Lora())
    _check_device(load_in_4bit)
    show_downloads_alone()
    try:
        model, tokenizer, compute = _pretrained(name, where, load_in_4bit, dtype, threads)
        if load_in_4bit:
            # PEFT's own preparation turns norms, embeddings and with them all states into float32.
            model.activation_checkpointing_enable({"use_reentrant": False})
        policy = Policy(with_lora(model, lora, seed), tokenizer, batch_size, compute, chat_options)
        policy.tokens.prefill = prefill
        policy.tokens.shots = shots or {}
        policy.labels = labels_of(name, adapter)
        if adapter_folder:
            policy.load(adapter_folder)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"--model {name}: {_no_memory(load_in_4bit)}") from None
    return policy


def labels_of(name: str, adapter: str | None = None) -> int:
    """How many labels a model with an adapter has consumed; `name` and `adapter` as for `load_policy`.

    Raises:
        InputError: there is no such model, or the file that holds the number is damaged.
    """
    of_the_model = read_labels(Path(location(name)))
    if adapter is None:
        return of_the_model
    return read_labels(Path(adapter).expanduser(), default=of_the_model)


def show_downloads_alone() -> None:
    """Progress bars for downloads from the hub, unless they are switched off; none for reading from disk."""
    hidden = are_progress_bars_disabled()
    logging.disable_progress_bar()  # those of transformers, and with them those of the hub
    if not hidden:
        enable_progress_bars()


# The steps of `load_policy`.


def location(name: str) -> str:
    """A folder, or a name on the hub."""
    if name in EMBEDDED and not (EMBEDDED[name] / "config.json").is_file():
        noise = " --inverse-noise 0.9" if name == "embedded-hard" else ""
        raise InputError(
            f"--model {name}: no weights in {EMBEDDED[name]}: "
            f"make them with python -m agents.pretrain --output {name}{noise}"
        )
    where = ALIASES.get(name, name)
    if name == "smollm2" and (smollm2.folder() / "config.json").is_file():
        where = str(smollm2.folder())
    if where.startswith("~"):
        where = str(Path(where).expanduser())
    return where


def _check_device(load_in_4bit: bool) -> None:
    missing = not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None
    if load_in_4bit and missing:
        raise InputError(
            "--load-in-4bit: needs a CUDA device and bitsandbytes: "
            "pip install '.[gpu]', or leave it out (--no-load-in-4bit)"
        )


def _pretrained(
    name: str, where: str, load_in_4bit: bool, dtype: str, threads: int | None
) -> tuple[Any, Any, Compute]:
    """The base model, its tokenizer, and how the model computes."""
    config, tokenizer = described(name, where)
    with readable(name, where):
        compute = _compute(config, dtype, threads)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_options(compute, load_in_4bit),
        )
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
    _check_weights(name, model)
    return model, tokenizer, compute


def described(name: str, where: str) -> tuple[Any, Any]:
    """A model's configuration and tokenizer; no weights are read.

    Raises:
        InputError: one cannot be read.
    """
    with readable(name, where):
        find_hub(where)
        # Without an explicit False, transformers asks on the terminal whether to run a repository's code.
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        _refuse_kernels(name, config)
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left", trust_remote_code=False)
    return config, tokenizer


@contextlib.contextmanager
def readable(name: str, where: str) -> Iterator[None]:
    """InputError, in one line, for what transformers and its libraries raise for a model that is none."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if out_of_memory(error):
            raise
        # The first line says what is wrong; what follows is advice about transformers' own functions.
        reason = (str(error).strip() or one_line(error)).split("\n")[0]
        fix = ALLOWED
        if where == SMOLLM2:
            fix = f"make smollm2 (python -m agents.fetch) puts it into {smollm2.folder()}, without a hub"
        raise InputError(f"--model {name}: cannot be loaded: {reason.rstrip(' .:')}: {fix}") from None


def _refuse_kernels(name: str, config: Any) -> None:
    """A kernel of the hub that a model's file names is code, and would be run. Raises InputError."""
    for part in (config, config.get_text_config()):
        kernel = str(getattr(part, "_attn_implementation", None) or "")
        if "/" in kernel:
            problem = f"its config.json names code of the hub ({kernel}), which is not run"
            raise InputError(f"--model {name}: {problem}: remove attn_implementation from it")


def _check_weights(name: str, model: Any) -> None:
    """Raises InputError for weights that are no numbers, and for a model that sees the text after a token."""
    for part, tensor in model.named_parameters():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            why = f"its weights hold NaN or infinity, in {part}"
            raise InputError(f"--model {name}: {why}: give an undamaged copy of it")
    size = model.config.get_text_config().vocab_size
    first = []
    for last in (0, size - 1):
        ids = torch.tensor([[size // 2, last]], device=model.device)
        with torch.no_grad():
            first.append(model(input_ids=ids).logits[0, 0].float())
    spread = float((first[0] - first[1]).abs().max())
    rounding = 1e-4 if model.dtype == torch.float32 else 0.02
    if not spread <= rounding * float(first[0].abs().max()):
        why = "what it says of a token depends on the text after it"
        if not all(logits.isfinite().all() for logits in first):
            why = "it computes NaN or infinity"
        raise InputError(f"--model {name}: {why}: give a causal language model, or another --dtype")


def chosen_dtype(dtype: str) -> str:
    """The numbers of a model on a GPU."""
    bits_16 = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return bits_16 if dtype == "auto" else dtype


def _compute(config: Any, dtype: str, threads: int | None) -> Compute:
    """On a GPU 16 bits unless others are asked for. Sets the threads of the whole process."""
    if torch.cuda.is_available():
        torch.set_num_threads(threads or torch.get_num_threads())
        return Compute(chosen_dtype(dtype), torch.get_num_threads())
    compute = on_cpu(config, dtype, threads)
    torch.set_num_threads(compute.threads)
    return compute


def _options(compute: Compute, load_in_4bit: bool) -> dict[str, Any]:
    """What transformers is told about numbers and device."""
    kind = getattr(torch, compute.dtype)
    options: dict[str, Any] = {"dtype": kind}
    if torch.cuda.is_available():
        options["device_map"] = {"": 0}
    elif compute.dtype == "bfloat16":
        options["attn_implementation"] = "eager"  # the fused attention of CPUs is slower than it in bfloat16
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
        )
    return options


def _no_memory(load_in_4bit: bool) -> str:
    if not torch.cuda.is_available():
        return "too large for the memory of this machine: choose a smaller model"
    if load_in_4bit:
        return "too large for the GPU's free memory: free some, or choose a smaller model"
    return "too large for the GPU's free memory: use --load-in-4bit, free some, or choose a smaller model"
