"""Any Hugging Face causal language model with LoRA: loading, batched generation, log-probabilities, adapter on, off and snapshot."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from envs.domain import unit
from envs.types import Completion, InputError

EMBEDDED = Path(__file__).parent / "embedded"
ALIASES = {"embedded": str(EMBEDDED), "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.2"}
Snapshot = dict[str, Tensor]


@dataclass(frozen=True)
class Lora:
    """The documented adapter. Models without these projections get LoRA on all linear layers."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def seed_of(*parts: object) -> int:
    """A 63-bit seed for torch from (seed, cycle, purpose, index)."""
    return int(unit(*parts) * 2**63)


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Torch's generators as (seed, cycle, purpose, index) says; the state outside is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(*parts))
        yield


class Policy:
    """A causal language model with one LoRA adapter named `default`.

    Args:
        model: the PEFT model.
        tokenizer: its tokenizer; its chat template is used where it has one.
        batch_size: sequences in one forward pass; halved for good whenever memory runs out.
    """

    def __init__(self, model: PeftModel, tokenizer: Any, batch_size: int = 128) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.device = next(model.parameters()).device
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        vocabulary = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        ends_line = torch.zeros(max(len(tokenizer), model.config.vocab_size), dtype=torch.bool, device=self.device)
        ends_line[: len(vocabulary)] = torch.tensor(["\n" in text for text in vocabulary], device=self.device)
        self._ends_line = ends_line
        eos = model.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
        model.eval()

    # ---- tokens ----

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt in the generation template, ready for a completion to follow."""
        if self.tokenizer.chat_template:
            texts = [
                self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
                for prompt in prompts
            ]
            return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer([prompt + "\n" for prompt in prompts])["input_ids"])

    def completion_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it would follow a prompt, without an end-of-sequence token."""
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []

    # ---- generation ----

    def generate(
        self, prompts: Sequence[str], n: int = 1, *, temperature: float, max_new_tokens: int = 64, seed: int = 0
    ) -> list[list[Completion]]:
        """Writes `n` one-line completions after each of P prompts.

        Prompts are sorted by length, left-padded and decoded in batches; a line ends at a line feed or an end-of-sequence token.
        With temperature 0 (greedy) equal prompts are decoded once and the result is repeated.

        Returns:
            [P][n] completions.
        """
        rows = list(range(len(prompts))) if temperature else [prompts.index(prompt) for prompt in dict.fromkeys(prompts)]
        ids = dict(zip(rows, self.prompt_ids([prompts[row] for row in rows]), strict=True))
        order = sorted(rows, key=lambda row: (-len(ids[row]), row))
        jobs = [(row, sample) for row in order for sample in range(n if temperature else 1)]

        def decode(batch: list[tuple[int, int]], first: int) -> list[Completion]:
            with self._evaluating(), seeded("generate", seed, first):
                return self._decode([ids[row] for row, _ in batch], temperature, max_new_tokens)

        written = dict(zip(jobs, self._in_batches(jobs, decode), strict=True))
        if temperature:
            return [[written[row, sample] for sample in range(n)] for row in range(len(prompts))]
        by_prompt = {prompts[row]: written[row, 0] for row in rows}
        return [[by_prompt[prompt]] * n for prompt in prompts]

    def _decode(self, rows: list[list[int]], temperature: float, max_new_tokens: int) -> list[Completion]:
        width = max(map(len, rows))
        inputs = torch.full((len(rows), width), self.pad, device=self.device)
        mask = torch.zeros_like(inputs)
        for row, ids in enumerate(rows):
            inputs[row, width - len(ids) :] = torch.tensor(ids, device=self.device)
            mask[row, width - len(ids) :] = 1
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
        output: Any = self.model.generate(
            input_ids=inputs,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                pad_token_id=self.pad,
                eos_token_id=sorted(self._eos),
                return_dict_in_generate=True,
                output_logits=True,
                **sampling,
            ),
            stopping_criteria=StoppingCriteriaList([_EndOfLine(self._ends_line, width)]),
        )
        tokens = output.sequences[:, width:]
        logprobs = torch.stack(
            [logits.log_softmax(-1).gather(1, tokens[:, step, None])[:, 0] for step, logits in enumerate(output.logits)], dim=1
        )
        return [self._completion(ids, values) for ids, values in zip(tokens.tolist(), logprobs.tolist(), strict=True)]

    def _completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        end, blank = len(ids), True
        for position, token in enumerate(ids):
            line_feed = bool(self._ends_line[token])
            if token in self._eos or (line_feed and not blank):
                end = position
                break
            blank = blank and line_feed
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        return Completion(text.split("\n")[0].strip(), tuple(ids[:end]), tuple(logprobs[:end]), truncated=end == len(ids))

    # ---- log-probabilities ----

    def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of each token of each continuation after its prompt, in one batched forward pass -> [P][T_p]."""
        return self.logprobs_of_ids(list(zip(self.prompt_ids(prompts), self.completion_ids(continuations), strict=True)))

    def logprobs_of_ids(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """The same for (prompt ids, completion ids)."""
        order = sorted(range(len(pairs)), key=lambda row: -len(pairs[row][0]) - len(pairs[row][1]))

        def score(batch: list[int], first: int) -> list[list[float]]:
            with self._evaluating(), torch.no_grad():
                logprobs_B_T, mask_B_T = self.token_logprobs([pairs[row] for row in batch])
            return [values[mask].tolist() for values, mask in zip(logprobs_B_T, mask_B_T, strict=True)]

        values = dict(zip(order, self._in_batches(order, score), strict=True))
        return [values[row] for row in range(len(pairs))]

    def token_logprobs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities with gradients, for losses.

        Args:
            pairs: (prompt ids, completion ids) of B sequences.

        Returns:
            logprobs_B_T and a Boolean mask_B_T, True at completion tokens; T is the longest sequence less one.
        """
        width = max(len(prompt) + len(completion) for prompt, completion in pairs)
        inputs = torch.full((len(pairs), width), self.pad)
        attention = torch.zeros_like(inputs)
        wanted = torch.zeros_like(inputs, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(pairs):
            length = len(prompt) + len(completion)
            inputs[row, :length] = torch.tensor([*prompt, *completion])
            attention[row, :length] = 1
            wanted[row, len(prompt) : length] = True
        inputs, attention, wanted = (tensor.to(self.device) for tensor in (inputs, attention, wanted))
        logits = self.model(input_ids=inputs, attention_mask=attention, use_cache=False).logits[:, :-1].float()
        mask = wanted[:, 1:]
        logprobs = torch.zeros(mask.shape, device=self.device)
        picked = logits[mask].log_softmax(-1).gather(1, inputs[:, 1:][mask][:, None])[:, 0]
        return logprobs.masked_scatter(mask, picked), mask

    # ---- the adapter ----

    @contextlib.contextmanager
    def adapter(self, which: Literal["on", "off"] | Snapshot) -> Iterator[None]:
        """Runs with the adapter `on` (as it is), `off` (the base model), or with the weights of a snapshot; then restores it."""
        if which == "off":
            with self.model.disable_adapter():
                yield
        elif which == "on":
            yield
        else:
            before = self.snapshot()
            self.restore(which)
            try:
                yield
            finally:
                self.restore(before)

    def inverter(self, which: str) -> contextlib.AbstractContextManager[None]:
        """`current`: the model as it trains; `base`: with the adapter off, at no memory cost."""
        if which not in ("current", "base"):
            raise InputError(f"--inverter {which}: use current or base")
        return self.adapter("off" if which == "base" else "on")

    def snapshot(self) -> Snapshot:
        """A copy of the adapter's weights."""
        return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(self.model).items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Puts a snapshot's weights back."""
        set_peft_model_state_dict(self.model, snapshot)

    def save(self, folder: Path) -> None:
        """Writes the adapter in PEFT's format, safetensors."""
        self.model.save_pretrained(str(folder))

    def load(self, folder: Path) -> None:
        """Loads the weights of a PEFT adapter folder into this adapter; it stays trainable."""
        from safetensors.torch import load_file

        file = Path(folder) / "adapter_model.safetensors"
        if not file.is_file():
            raise InputError(f"--adapter {folder}: no adapter_model.safetensors there: give the folder of a PEFT adapter")
        weights = load_file(str(file))
        own = get_peft_model_state_dict(self.model)
        if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in own.items()}:
            raise InputError(f"--adapter {folder}: its layers or ranks differ from --model and --lora-r: use those it was trained with")
        self.restore({name: tensor.to(own[name].device) for name, tensor in weights.items()})

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def adapter_hash(self) -> str:
        """sha256 of the adapter's weights: equal hashes, equal weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(get_peft_model_state_dict(self.model).items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    # ---- batches ----

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def _in_batches(self, rows: list[Any], work: Callable[[list[Any], int], list[Any]]) -> list[Any]:
        """The results of `work(batch, position of its first row)` over all rows; halves the batch size for good when memory runs out."""
        results: list[Any] = []
        while len(results) < len(rows):
            try:
                results += work(rows[len(results) : len(results) + self.batch_size], len(results))
            except (MemoryError, RuntimeError) as error:
                if self.batch_size == 1 or not _out_of_memory(error):
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                print(f"memory ran out: going on with {self.batch_size} sequences at a time", flush=True)
        return results


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


class _EndOfLine(StoppingCriteria):
    """Ends a row at the first line feed that follows something else than line feeds."""

    def __init__(self, ends_line: Tensor, start: int) -> None:
        self.ends_line, self.start = ends_line, start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended = self.ends_line[input_ids[:, self.start :]]
        return ended[:, -1] & ~ended.all(dim=1)


def load_policy(
    name: str,
    *,
    adapter: str | None = None,
    lora: Lora = Lora(),
    load_in_4bit: bool = False,
    seed: int = 0,
    batch_size: int = 128,
) -> Policy:
    """Loads a model with a fresh LoRA adapter, or with the weights of a saved one.

    Args:
        name: `embedded`, `mistral-7b`, a hub name or a folder. Safetensors only, and no code of the repository is run.
        adapter: folder of a PEFT adapter to start from.
        lora: shape of the adapter; `r=0` is not allowed.
        load_in_4bit: NF4 with bitsandbytes, on CUDA only.
        seed: of the adapter's first weights.
        batch_size: sequences in one forward pass, to begin with.

    Raises:
        InputError: no such model, or it needs what this machine lacks.
    """
    logging.disable_progress_bar()
    where = ALIASES.get(name, name)
    if name == "embedded" and not (EMBEDDED / "config.json").is_file():
        raise InputError(f"--model embedded: no weights in {EMBEDDED}: make them with python -m agents.pretrain")
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch.float32}
    if cuda:
        options["dtype"] = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        options["device_map"] = {"": 0}
    if load_in_4bit:
        if not cuda or importlib.util.find_spec("bitsandbytes") is None:
            raise InputError("--load-in-4bit: needs a CUDA device and bitsandbytes: pip install 'inversion[gpu]', or drop the flag")
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=options["dtype"]
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(where, use_safetensors=True, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"--model {name}: cannot be loaded: {reason} Give embedded, a folder or a reachable hub name.") from None
    if load_in_4bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model)
    names = {module.rpartition(".")[2] for module, _ in model.named_modules()}
    targets = list(lora.targets) if names.issuperset(lora.targets) else "all-linear"
    with seeded("lora", seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will go
        peft_model = get_peft_model(
            model,
            LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"),
        )
    policy = Policy(peft_model, tokenizer, batch_size)
    if adapter:
        policy.load(Path(adapter))
    return policy
