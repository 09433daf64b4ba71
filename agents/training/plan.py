"""`--plan`: how much memory a run will take and how much it will write, before any weight is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psutil
import torch
from transformers import GenerationConfig

from agents.policy.chat import read_options
from agents.policy.footprint import Shape, Work, memory, shape_of
from agents.policy.load import chosen_dtype, described, location, readable
from agents.policy.lora import Lora, saved_lora
from agents.policy.policy import BATCH_SIZE
from agents.policy.tokens import Shots, Tokens
from agents.training.config import TrainConfig
from envs.domain import domain_names, load_domain
from envs.prompts import forward_prompt, inverse_prompt
from rewards.learnt import OWN, folder_of, is_learnt, read_card

LOOKED_AT = 20  # tasks of each domain whose prompts are measured


def planned(config: TrainConfig, lora: Lora, shots: Shots) -> str:
    """Lines about memory and work, with a warning where the memory that is free will not do.

    Other models than the policy and a reward model, such as a judge and an embedder, are left out.

    Raises:
        InputError: the model's configuration or its tokenizer cannot be read.
    """
    name = config.model or "embedded"
    where = location(name)
    base, tokenizer = described(name, where)
    on_gpu = torch.cuda.is_available()
    # On a CPU `auto` is measured when the run begins; float32 is the larger.
    dtype = chosen_dtype(config.dtype) if on_gpu else config.dtype.replace("auto", "float32")
    kind = getattr(torch, dtype)
    with readable(name, where):
        shape = shape_of(base, lora, kind, config.load_in_4bit)
    prompt = longest_prompt(config, base, tokenizer, shots)
    work = Work(BATCH_SIZE, config.batch_size, prompt, config.max_new_tokens)
    peaks = memory(shape, work)
    numbers = f"{dtype}, 4 bits" if config.load_in_4bit else dtype
    size = f"{shape.weights / 1e6:,.1f} million weights"
    lines = [
        f"model     {name}: {size} in {numbers}, {of(shape.weight_bytes)}",
        f"          {shape.trained / 1e6:,.1f} million of them in LoRA of rank {lora.r}",
        f"prompts   up to {work.prompt} tokens, answers up to {work.answer}",
        f"writing   {of(peaks['writing'])} with {work.rows} rows at a time",
        f"scoring   {of(peaks['scoring'])} with {work.rows} rows at a time",
        f"training  {of(peaks['training'])} with {work.batch} examples at a time",
    ]
    answers = config.cycles * config.tasks * config.candidates
    held_out = config.eval_tasks * (1 + config.eval_samples)
    lines.append(f"writes    {answers:,} commands to learn from, and {held_out:,} in each whole evaluation")
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    lines.append(f"free      {of(free)} on this {'GPU' if on_gpu else 'machine'}")
    if beside := reward_model_bytes(config, shape):
        lines.append(f"beside    {of(beside)} of them for the weights of the reward model")
        free -= beside
    return "\n".join(lines + warnings(shape, work, free, on_gpu and not config.load_in_4bit))


def reward_model_bytes(config: TrainConfig, policy: Shape) -> int:
    """Of the weights of a reward model, which stands beside the policy; 0 without one."""
    if config.reward == OWN:  # it begins as what the policy begins as
        return policy.weight_bytes
    if not is_learnt(config.reward):
        return 0
    card, lora = read_card(config.reward), saved_lora(folder_of(config.reward))
    name, in_4bit = card["base"], bool(card.get("load_in_4bit"))
    where = location(name)
    base, _ = described(name, where)
    with readable(name, where):
        return shape_of(base, lora, getattr(torch, card["dtype"]), in_4bit).weight_bytes


def longest_prompt(config: TrainConfig, base: Any, tokenizer: Any, shots: Shots) -> int:
    """Tokens of the longest prompt of some tasks, either direction."""
    size = base.get_text_config().vocab_size
    options = read_options(config.chat_template_kwargs)
    tokens = Tokens(tokenizer, size, GenerationConfig().eos_token_id, torch.device("cpu"), options)
    tokens.prefill, tokens.shots = config.prefill, shots
    prompts = []
    for domain in domain_names(config.domain):
        for task in load_domain(domain).tasks("train", LOOKED_AT, config.seed, "plan"):
            prompts += [forward_prompt(task), inverse_prompt(task, task.text)]  # about as long as a command
    return max(map(len, tokens.of_prompts(prompts)))


def warnings(shape: Shape, work: Work, free: int, four_bits_would_do: bool) -> list[str]:
    """What does not fit, and what to do."""
    fix = "use --load-in-4bit" if four_bits_would_do else "choose a smaller model"
    if shape.weight_bytes > free:
        return [f"The weights do not fit: {fix}."]
    found = []
    one = replace(work, rows=1, batch=1)
    for phase, needed in memory(shape, work).items():
        if needed <= free:
            continue
        if memory(shape, one)[phase] <= free:
            found.append(
                f"{phase.capitalize()} will go on with fewer at a time, as often as memory runs out."
            )
        else:
            found.append(f"{phase.capitalize()} does not fit: {fix}.")
    return found


def of(count: float) -> str:
    """Bytes for a reader."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
