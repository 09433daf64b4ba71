"""A model with random weights in a folder, so that speed and memory can be measured without a download.

How fast a model writes, scores and trains depends on its shape, not on its weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from agents.benchmarks.architectures import read_architecture
from agents.policy.names import EMBEDDED
from agents.policy.seeds import seeded

SPREAD = 6.0  # standard deviation of the logits of tokens that the tokenizer has; all others have 0


def write_random(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
    """Writes a model of an architecture with random weights, and the embedded model's tokenizer.

    The model writes tokens that the tokenizer has, and never ends an answer: every one has the most tokens
    that are asked for.
    """
    settings = read_architecture(name)
    special = AutoConfig.from_pretrained(EMBEDDED["embedded"])
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        settings[key] = getattr(special, key)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED["embedded"])
    del tokenizer.init_kwargs["one_line_answers"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with seeded("random-weights", seed), torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    written = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    with torch.no_grad():
        output = model.get_output_embeddings().weight
        spread = float(output[written].float().std()) * math.sqrt(config.hidden_size)
        rows = output[written] * (SPREAD / spread)
        if not config.tie_word_embeddings:
            output.zero_()
        output[written] = rows
    model.save_pretrained(folder, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)


def let_answers_end(folder: Path, length: int) -> None:
    """Makes every `length`-th token of a model in a folder one that ends an answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.eos_token_id, *range(length, len(tokenizer), length)]
    GenerationConfig(eos_token_id=ends).save_pretrained(folder)
