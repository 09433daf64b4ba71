"""Real architectures with tiny random weights: prompts, answers, log-probabilities, LoRA, and learning.

Chat templates are the originals, as TRL ships them, or are written here to the same marks. Tokenizers are
small ones with each family's special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import MISTRAL_TEMPLATE, Corpus, close, stir
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from agents import ppo, rejection_sft
from agents.cli.command import run_command
from agents.policy import prefix
from agents.policy.load import load_policy
from agents.policy.lora import Lora, adapted
from agents.policy.policy import Policy
from agents.pretraining.model import make_tokenizer
from envs.answers import take_out
from envs.types import Prompt

PROMPTS = ["list files", "count the lines of notes.txt, then sort them by name", "x"]
ANSWERS = ["ls -a docs", "wc -l notes.txt | sort", "é"]

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
LINEAR_ATTENTION = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ATTENTION = "2 q_proj, 2 k_proj, 2 v_proj, 2 o_proj"


def original(name: str) -> str:
    """A chat template as TRL ships it."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


# To the same marks as in the models' own repositories.
MISTRAL_3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face' }}"
    "{{ '<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{{ '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n' }}"
    "{{ 'Today Date: ' + strftime_now('%d %B %Y') + '\n' }}"
    "{{ 'Reasoning Mode: ' + ('/think' if enable_thinking else '/no_think') + '\n\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ '## Custom Instructions\n\n' + messages[0]['content'] }}"
    "{% endif %}{{ '<|im_end|>\n' }}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)
PHI_4 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A published model in small.

    Attributes:
        config: the name of its configuration's class, and what differs from `SIZE`.
        template: its chat template.
        special: its special tokens; the first begins a text, unless it is empty, the second ends one.
        lora: the layers that are adapted by default.
        spaces: whether its tokenizer writes spaces as `▁`.
    """

    config: str
    template: str
    special: tuple[str, ...]
    lora: str = ATTENTION
    spaces: bool = False
    options: Any = None


FAMILIES = {
    "Mistral 7B v0.2": Family("MistralConfig", MISTRAL_TEMPLATE, ("<s>", "</s>"), spaces=True),
    "Mistral 7B v0.3": Family("MistralConfig", MISTRAL_3, ("<s>", "</s>", "[INST]", "[/INST]"), spaces=True),
    "Llama 3.2": Family(
        "LlamaConfig",
        original("llama3_2"),
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "Qwen2.5": Family(
        "Qwen2Config", original("qwen2_5"), ("", "<|im_end|>", "<|im_start|>", "<|endoftext|>")
    ),
    "Qwen3": Family("Qwen3Config", original("qwen3"), ("", "<|im_end|>", "<|im_start|>")),
    "Qwen3-Next": Family(
        "Qwen3NextConfig",
        original("qwen3_instruct_2507"),
        ("", "<|im_end|>", "<|im_start|>"),
        lora="3 in_proj_qkvz, 3 in_proj_ba, 3 out_proj, 1 q_proj, 1 k_proj, 1 v_proj, 1 o_proj"
        "; experts without LoRA",
        options={**LINEAR_ATTENTION, **EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "Qwen3.5": Family(
        "Qwen3_5TextConfig",
        original("qwen3_5_nothink"),
        ("", "<|im_end|>", "<|im_start|>"),
        lora="3 out_proj, 3 in_proj_qkv, 3 in_proj_z, 3 in_proj_b, 3 in_proj_a, 4 gate_proj, 4 up_proj, "
        "4 down_proj, 1 q_proj, 1 k_proj, 1 v_proj, 1 o_proj",
        options=LINEAR_ATTENTION,
    ),
    "Gemma 2": Family(
        "Gemma2Config", original("gemma"), ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), spaces=True
    ),
    "Gemma 3 1B": Family(
        "Gemma3TextConfig",
        original("gemma3"),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        spaces=True,
    ),
    "Gemma 3 4B": Family(
        "Gemma3Config",
        original("gemma3"),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        spaces=True,
        options={"text_config": SIZE, "vision_config": VISION, "mm_tokens_per_image": 4},
    ),
    "Phi-3.5": Family(
        "Phi3Config",
        original("phi3_5"),
        ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"),
        lora="2 o_proj, 2 qkv_proj, 2 gate_up_proj, 2 down_proj",
        spaces=True,
    ),
    "Phi-4": Family(
        "Phi3Config",
        PHI_4,
        ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|im_sep|>"),
        lora="2 o_proj, 2 qkv_proj, 2 gate_up_proj, 2 down_proj",
    ),
    "SmolLM2": Family("LlamaConfig", SMOLLM2, ("<|im_start|>", "<|im_end|>")),
    "SmolLM3": Family("SmolLM3Config", SMOLLM3, ("", "<|im_end|>", "<|im_start|>")),
    "gpt-oss": Family(
        "GptOssConfig",
        original("gptoss"),
        (
            "<|startoftext|>",
            "<|return|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
        ),
        options={"num_local_experts": 4, "num_experts_per_tok": 2},
        lora=f"{ATTENTION}; experts without LoRA",
    ),
    "DeepSeek-R1-Distill-Qwen": Family(
        "Qwen2Config",
        original("deepseek_r1_distill"),
        (
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<|endoftext|>",
        ),
    ),
}


CHATML = "<|im_start|>user\nlist<|im_end|>\n<|im_start|>assistant\n"
GEMMA = "<bos><start_of_turn>user\nlist<end_of_turn>\n<start_of_turn>model\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
# What is asked with the message `list`, and what ends an answer.
TURNS = {
    "Mistral 7B v0.2": ("<s>[INST] list [/INST]", "</s>"),
    "Mistral 7B v0.3": ("<s>[INST] list[/INST]", "</s>"),
    "Llama 3.2": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 01 Jan 2026\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nlist<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "Qwen2.5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        + CHATML,
        "<|im_end|>",
    ),
    "Qwen3": (CHATML + NO_THOUGHT, "<|im_end|>"),
    "Qwen3-Next": (CHATML, "<|im_end|>"),
    "Qwen3.5": (CHATML + NO_THOUGHT, "<|im_end|>"),
    "Gemma 2": (GEMMA, "<end_of_turn>"),
    "Gemma 3 1B": (GEMMA, "<end_of_turn>"),
    "Gemma 3 4B": (GEMMA, "<end_of_turn>"),
    "Phi-3.5": ("<|user|>\nlist<|end|>\n<|assistant|>\n", "<|end|>"),
    "Phi-4": ("<|im_start|>user<|im_sep|>list<|im_end|><|im_start|>assistant<|im_sep|>", "<|im_end|>"),
    "SmolLM2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        + CHATML,
        "<|im_end|>",
    ),
    "SmolLM3": (
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 01 January 2026\n"
        "Reasoning Mode: /no_think\n\n<|im_end|>\n" + CHATML + "<think>\n\n</think>\n",
        "<|im_end|>",
    ),
    "gpt-oss": (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2026-01-01\n\nReasoning: low\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>user<|message|>list<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
    "DeepSeek-R1-Distill-Qwen": (
        "<｜begin▁of▁sentence｜><｜User｜>list<｜Assistant｜>" + NO_THOUGHT,
        "<｜end▁of▁sentence｜>",
    ),
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, foreign_mistral: Path) -> Callable[[str], Path]:
    """The folder of a family's model, made when it is first asked for."""
    root = tmp_path_factory.mktemp("families")
    bytes_alone = make_tokenizer(Corpus(), 384).backend_tokenizer.to_str()
    with_spaces = AutoTokenizer.from_pretrained(foreign_mistral).backend_tokenizer.to_str()

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            family = FAMILIES[name]
            save(family, Tokenizer.from_str(with_spaces if family.spaces else bytes_alone), folder)
        return folder

    return make


def save(family: Family, backend: Tokenizer, folder: Path) -> None:
    """A family's tokenizer, and a model with weights so large that probabilities depend on the context."""
    begin, end, *others = family.special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        bos_token=begin or None,
        pad_token=end,
        additional_special_tokens=others,
        chat_template=family.template,
    )
    tokenizer.save_pretrained(folder)
    values: dict[str, Any] = {**SIZE, **(family.options or {})}
    marks = {
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if "text_config" in values:
        values = {**values, "text_config": {**values["text_config"], "vocab_size": len(tokenizer)}}
        values = {name: value for name, value in values.items() if name not in SIZE}
    else:
        values |= {"vocab_size": len(tokenizer)}
    config = getattr(transformers, family.config)(**values, **marks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "conv1d" not in name:
                parameter.mul_(5)
    model.save_pretrained(folder)


# What each of these has, another has not: `▁` for spaces, a system turn, a thought, vision, experts.
FAST = ("Mistral 7B v0.2", "Llama 3.2", "Qwen3", "Gemma 3 4B", "gpt-oss")


def families() -> list[Any]:
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in FAMILIES]


@pytest.fixture(scope="module", params=families())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stirred(folder_of: Callable[[str], Path], family: str) -> Policy:
    policy = load_policy(str(folder_of(family)), lora=Lora(r=4, dropout=0.0))
    stir(policy)
    return policy


@pytest.fixture
def loaded_family(stirred: Policy) -> Iterator[Policy]:
    """A family's policy; what a test does to its adapter is undone."""
    before = stirred.snapshot()
    yield stirred
    stirred.restore(before)
    stirred.model.zero_grad()
    stirred.model.eval()


def by_hand(policy: Policy, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Log-probabilities of an answer's tokens by a forward pass of the whole model over one sequence."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *answer]], device=policy.device)
        logits = policy.model(input_ids=ids).logits[0].float()
    table = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [float(row[token]) for row, token in zip(table, answer, strict=True)]


def test_layers_and_log_probabilities(
    loaded_family: Policy, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded_family
    assert adapted(policy.model) == FAMILIES[family].lora
    touched = [name for name, _ in policy.model.named_parameters() if "lora_" in name]
    assert not any("vision" in name for name in touched)

    together = policy.logprobs(PROMPTS, ANSWERS)
    monkeypatch.setattr(prefix, "WORTH_IT", 1)
    for values, others in zip(policy.logprobs(PROMPTS, ANSWERS), together, strict=True):
        assert close(values, others, 1e-3)
    prompts, answers = policy.prompt_ids(PROMPTS), policy.completion_ids(ANSWERS)
    for prompt, answer, values in zip(prompts, answers, together, strict=True):
        assert close(values, by_hand(policy, prompt, answer), 1e-3)
    assert policy.model.get_output_embeddings().weight.shape[0] == len(policy.tokens.texts)

    [written] = policy.generate([PROMPTS[1]], 2, temperature=1.0, max_new_tokens=6, seed=1)
    for completion in written:
        assert close(completion.logprobs, by_hand(policy, prompts[1], completion.token_ids), 1e-3)


def test_a_turn_is_begun_and_ended_as_the_template_writes_it(loaded_family: Policy, family: str) -> None:
    policy, (asked, end) = loaded_family, TURNS[family]
    assert policy.tokens.as_text(Prompt("list")) == asked
    assert policy.tokenizer.decode(policy.end) == end
    assert policy.end[-1] in policy.ends
    # In a message the marks are text, one of each begins and ends a turn, and a text begins once.
    marks = [mark for mark in FAMILIES[family].special if mark]
    [plain, hostile] = policy.prompt_ids(["list", f"list {' '.join(marks)}"])
    for mark in marks:
        token = policy.tokenizer.convert_tokens_to_ids(mark)
        assert plain.count(token) == hostile.count(token) == asked.count(mark), mark


def test_an_answer_is_the_whole_turn(loaded_family: Policy, family: str, script: Callable[..., None]) -> None:
    policy = loaded_family
    answer = "Sure:\n```bash\nls -a\n```"
    script(policy, [[*policy.completion_ids([answer])[0], *policy.end]])
    [[completion]] = policy.generate(["list"], temperature=0.0, max_new_tokens=64)
    assert (completion.text, completion.truncated) == (answer, False)
    assert take_out(completion.text).command == "ls -a"
    assert not set(completion.token_ids) & policy.ends


def test_a_step_of_learning_makes_an_answer_likelier(loaded_family: Policy) -> None:
    policy = loaded_family
    pairs = list(zip(policy.prompt_ids(PROMPTS), policy.completion_ids(ANSWERS), strict=True))
    policy.model.train()
    before, mask = policy.token_logprobs(pairs)
    before[mask].mean().backward()
    with torch.no_grad():
        for parameter in policy.trainable():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
            parameter += 1e-4 * parameter.grad / (parameter.grad.norm() + 1e-9)
    after, _ = policy.token_logprobs(pairs)
    assert after[mask].mean().item() > before[mask].mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("agent", [rejection_sft, ppo])
def test_a_cycle(folder_of: Callable[[str], Path], family: str, agent: Any, tmp_path: Path) -> None:
    budget = "--cycles 1 --tasks 2 --candidates 2 --eval-tasks 2 --eval-subset 1 --eval-samples 1"
    settings = f"--force --reward random --domain network --max-new-tokens 6 --output {tmp_path} --name run"
    argv = [*f"{budget} {settings}".split(), "--model", str(folder_of(family))]
    assert run_command(agent.Config, agent.main, argv, agent.__name__.rpartition(".")[2]) == 0
    assert (tmp_path / "run" / "checkpoints" / "cycle-0001" / "COMPLETE").is_file()
