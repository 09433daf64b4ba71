"""Any Hugging Face causal language model with LoRA: loading, batched generation, log-probabilities, adapter on, off and snapshot."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from agents.policy.seeds import seeded
from envs.types import Completion, InputError

# Decay of the averaged adapter in a training phase: half of the average is of the last three phases.
EMA = 0.8
EMA_FILE = "ema.safetensors"  # beside the adapter in a checkpoint; PEFT does not look at it
Snapshot = dict[str, Tensor]


class Policy:
    """A causal language model with one LoRA adapter named `default`.

    Args:
        model: the PEFT model.
        tokenizer: its tokenizer; its chat template is used where it has one.
        batch_size: sequences in one forward pass; halved for good whenever memory runs out.

    Attributes:
        ema: exponential moving average of the adapter's weights, for the inverter `ema`; None where none is kept.
    """

    def __init__(self, model: PeftModel, tokenizer: Any, batch_size: int = 128) -> None:
        self.model = model
        self.ema: Snapshot | None = None
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.device = next(model.parameters()).device
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
        self._texts = texts + [""] * (model.config.vocab_size - len(texts))  # of each token alone
        self._end_of_line = _EndOfLine(self._texts, self.device)
        eos = model.generation_config.eos_token_id
        self._eos = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        takes = inspect.signature(model.get_base_model().forward).parameters
        self._reads_ahead = {"position_ids", "past_key_values", "logits_to_keep"} <= set(takes)
        # Many models bring a repetition penalty and the like, with which log-probabilities are not those of what is sampled.
        model.generation_config = GenerationConfig()  # type: ignore[assignment]
        model.eval()

    # ---- tokens ----

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt in the generation template, ready for a completion to follow; without one, a line feed ends it."""
        if not prompts:
            return []
        if self.tokenizer.chat_template:
            texts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
                )
                for prompt in prompts
            ]
            return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer([prompt + "\n" for prompt in prompts])["input_ids"])

    def completion_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it would follow a prompt, without an end-of-sequence token."""
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []

    # ---- generation ----

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 1,
        *,
        temperature: float,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Writes `n` one-line completions after each of P prompts.

        Prompts are sorted by length, left-padded and decoded in batches; a line ends at a line feed or an end-of-sequence token, and
        blank lines before it are skipped. With temperature 0 (greedy) equal prompts are decoded once and the result is repeated.

        Returns:
            [P][n] completions.
        """
        if n < 1:
            return [[] for _ in prompts]
        rows = (
            list(range(len(prompts)))
            if temperature
            else list({prompt: row for row, prompt in enumerate(prompts)}.values())
        )
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
        unique = {tuple(ids): at for at, ids in enumerate(dict.fromkeys(map(tuple, rows)))}
        inputs = torch.full((len(unique), width), self.pad, device=self.device)
        mask = torch.zeros_like(inputs)
        for ids, at in unique.items():
            inputs[at, width - len(ids) :] = torch.tensor(ids, device=self.device)
            mask[at, width - len(ids) :] = 1
        of_row = torch.tensor([unique[tuple(ids)] for ids in rows], device=self.device)
        read = self._read(inputs, mask, of_row) if len(unique) < len(rows) else {}
        inputs, mask = inputs[of_row], mask[of_row]
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
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
            stopping_criteria=StoppingCriteriaList([self._end_of_line.after(width)]),
            **read,
        )
        tokens = output.sequences[:, width:]
        logprobs = torch.stack(
            [
                logits.log_softmax(-1).gather(1, tokens[:, step, None])[:, 0]
                for step, logits in enumerate(output.logits)
            ],
            dim=1,
        )
        return [
            self.completion(ids, values)
            for ids, values in zip(tokens.tolist(), logprobs.tolist(), strict=True)
        ]

    def _read(self, inputs: Tensor, mask: Tensor, of_row: Tensor) -> dict[str, Any]:
        """Reads each prompt once, however many completions it gets: `past_key_values` for `generate`, where the model can be read so.

        Args:
            inputs, mask: U different prompts, left-padded to W (U, W); all but the last token is read.
            of_row: which of them each row begins with.
        """
        if not self._reads_ahead or inputs.shape[1] < 2:
            return {}
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            cache = self.model(
                input_ids=inputs[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions[:, :-1],
                use_cache=True,
                logits_to_keep=1,
            ).past_key_values
        plain = type(cache) is DynamicCache and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
        )
        if not plain:  # the states of linear attention and the like have no rows to choose from
            self._reads_ahead = False
            return {}
        cache.batch_select_indices(of_row)
        return {"past_key_values": cache}

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """Token ids that end a completion written by others: the end-of-sequence tokens, and all with a line feed."""
        return frozenset(self._eos | {token for token, text in enumerate(self._texts) if "\n" in text})

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass, to save memory."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())

    def completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        """Token ids as they were generated -> the completion, up to the end of its first line that holds something."""
        end, begun, truncated = len(ids), False, True
        for position, token in enumerate(ids):
            text = self._texts[token]
            if token in self._eos or "\n" in (text if begun else text.lstrip()):
                belongs = (
                    token not in self._eos and (text if begun else text.lstrip()).split("\n")[0].strip()
                )  # as of the token `)\n`
                end, truncated = position + bool(belongs), False
                break
            begun = begun or bool(text.strip())
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(
            text.strip().split("\n")[0].strip(), tuple(ids[:end]), tuple(logprobs[:end]), truncated
        )

    # ---- log-probabilities ----

    def logprobs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of each token of each continuation after its prompt, in one batched forward pass -> [P][T_p]."""
        return self.logprobs_of_ids(
            list(zip(self.prompt_ids(prompts), self.completion_ids(continuations), strict=True))
        )

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
        logits, targets, mask = self.token_logits(pairs)
        picked = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        logprobs = torch.zeros(mask.shape, device=self.device)
        return logprobs.masked_scatter(mask, picked), mask

    def token_logits(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 logits (N, vocabulary) of the N completion tokens of B sequences, these tokens (N,), and where they stand, mask_B_T."""
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
        logits = self.model(input_ids=inputs, attention_mask=attention, use_cache=False).logits[:, :-1]
        mask = wanted[:, 1:]
        return logits[mask].float(), inputs[:, 1:][mask], mask

    def entropy_and_kl(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[float | None, float | None]:
        """Mean entropy of the next-token distribution, and its mean KL to the base's, over completion tokens; nats, None of no tokens."""

        def measure(
            batch: list[tuple[Sequence[int], Sequence[int]]], first: int
        ) -> list[tuple[float, float, int]]:
            with self._evaluating(), torch.no_grad():
                own = self.token_logits(batch)[0].log_softmax(-1)
                with self.adapter("off"):
                    base = self.token_logits(batch)[0].log_softmax(-1)
            sums = (-(own.exp() * own).sum().item(), (own.exp() * (own - base)).sum().item(), len(own))
            return [sums] + [(0.0, 0.0, 0)] * (
                len(batch) - 1
            )  # a row for each sequence, as `_in_batches` counts them

        rows = self._in_batches([pair for pair in pairs if pair[1]], measure)
        tokens = sum(row[2] for row in rows)
        return (
            (sum(row[0] for row in rows) / tokens, sum(row[1] for row in rows) / tokens)
            if tokens
            else (None, None)
        )

    def entropies(
        self, prompts: Sequence[str], continuations: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        """Means over each continuation's tokens of the next-token distribution p's entropy and self-certainty -> [P]; None of no tokens.

        Self-certainty is KL(uniform || p) = -log V - mean over the V tokens of log p (Zhao et al. 2025, arXiv:2505.19590), in nats.
        """
        pairs = list(zip(self.prompt_ids(prompts), self.completion_ids(continuations), strict=True))
        order = sorted(
            (row for row, pair in enumerate(pairs) if pair[1]),
            key=lambda row: -len(pairs[row][0]) - len(pairs[row][1]),
        )

        def measure(batch: list[int], first: int) -> list[tuple[float, float]]:
            with self._evaluating(), torch.no_grad():
                logits_N_V, _, mask = self.token_logits([pairs[row] for row in batch])
                logprobs_N_V = logits_N_V.log_softmax(-1)
            entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
            certainty_N = -math.log(logprobs_N_V.shape[-1]) - logprobs_N_V.mean(-1)
            lengths = mask.sum(1).tolist()
            rows = zip(entropy_N.split(lengths), certainty_N.split(lengths), strict=True)
            return [(float(entropy.mean()), float(certainty.mean())) for entropy, certainty in rows]

        values = dict(zip(order, self._in_batches(order, measure), strict=True))
        return [values.get(row) for row in range(len(pairs))]

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
            try:
                self.restore(which)
                yield
            finally:
                self.restore(before)

    def inverter(self, which: str) -> contextlib.AbstractContextManager[None]:
        """`current`: the model as it trains; `base`: adapter off, no memory cost; `ema`: the average, or where none is kept `current`."""
        if which not in ("current", "base", "ema"):
            raise InputError(f"--inverter {which}: use current, base or ema")
        if which == "ema" and self.ema is not None:
            return self.adapter(self.ema)
        return self.adapter("off" if which == "base" else "on")

    def update_ema(self, decay: float) -> None:
        """average = decay * average + (1 - decay) * weights. Where no average is kept it starts at the weights."""
        now = self.snapshot()
        self.ema = (
            now
            if self.ema is None
            else {name: tensor.lerp(now[name], 1 - decay) for name, tensor in self.ema.items()}
        )

    def snapshot(self) -> Snapshot:
        """A copy of the adapter's weights."""
        return {name: tensor.detach().clone() for name, tensor in self._weights().items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Puts a snapshot's weights back; ValueError if it is of another adapter."""
        if _shapes(snapshot) != _shapes(self._weights()):
            raise ValueError("the snapshot is of an adapter with other layers or ranks")
        set_peft_model_state_dict(self.model, snapshot)

    def save(self, folder: Path) -> None:
        """Writes the adapter in PEFT's format, safetensors, and the average beside it where one is kept."""
        from safetensors.torch import save_file

        self.model.save_pretrained(str(folder), save_embedding_layers=False)
        if self.ema is not None:
            save_file(
                {name: tensor.contiguous() for name, tensor in sorted(self.ema.items())},
                str(Path(folder) / EMA_FILE),
            )

    def load(self, folder: Path) -> None:
        """Loads the weights of a PEFT adapter folder into this adapter, which stays trainable, and the average that lies beside them."""
        from safetensors.torch import load_file

        saved, own = adapter_config(folder), self.model.peft_config["default"].to_dict()
        names = ["adapter_model.safetensors", *([EMA_FILE] if (Path(folder) / EMA_FILE).is_file() else [])]
        files: list[Snapshot] = []
        for name in names:
            try:
                files.append(load_file(str(Path(folder) / name)))
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"--adapter {folder}: {name} cannot be read: {error}: give another adapter"
                ) from None
        if any(_shapes(weights) != _shapes(self._weights()) for weights in files):
            raise InputError(
                f"--adapter {folder}: its layers or ranks differ from --model and --lora-r: use those it was trained with"
            )
        if changed := [
            key
            for key in ("lora_alpha", "alpha_pattern", "use_rslora")
            if saved.get(key, own[key]) != own[key]
        ]:
            key = changed[0]
            fix = (
                "use the --lora-alpha that it was trained with"
                if key == "lora_alpha"
                else "give a plain LoRA adapter"
            )
            raise InputError(f"--adapter {folder}: its {key} is {saved[key]}, not {own[key]}: {fix}")
        weights, *average = (
            {name: tensor.to(self.device) for name, tensor in weights.items()} for weights in files
        )
        self.restore(weights)
        self.ema = average[0] if average else None

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def adapter_hash(self) -> str:
        """sha256 of the adapter's weights: equal hashes, equal weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._weights().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _weights(self) -> Snapshot:
        # Embeddings are never trained here; asking peft to find out whether they were would ask the hub.
        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

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
            batch = rows[len(results) : len(results) + self.batch_size]
            try:
                results += work(batch, len(results))
                continue
            except (MemoryError, RuntimeError) as error:
                if len(batch) == 1 or not _out_of_memory(error):
                    raise
            self.batch_size = (
                len(batch) // 2
            )  # out of the handler, which keeps the tensors of the failed attempt alive
            torch.cuda.empty_cache()
            print(f"memory ran out: going on with {self.batch_size} sequences at a time", flush=True)
        return results


def _out_of_memory(error: Exception) -> bool:
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in str(error) for sign in signs
    )


def _shapes(weights: Snapshot) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


class _EndOfLine(StoppingCriteria):
    """Ends a row at the first line feed that follows something visible. A token may hold both, as `)\\n` does."""

    def __init__(self, texts: Sequence[str], device: torch.device) -> None:
        self.visible = torch.tensor([bool(text.strip()) for text in texts], device=device)
        self.line_feed = torch.tensor(["\n" in text for text in texts], device=device)
        self.whole_line = torch.tensor(["\n" in text.lstrip() for text in texts], device=device)
        self.start = 0

    def after(self, start: int) -> _EndOfLine:
        """The same for rows whose completions begin at position `start`."""
        other = copy.copy(self)
        other.start = start
        return other

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        last, begun = input_ids[:, -1], self.visible[input_ids[:, self.start : -1]].any(dim=1)
        return self.whole_line[last] | (self.line_feed[last] & begun)


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a saved PEFT adapter; InputError where the folder holds none."""
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        if not (Path(folder) / name).is_file():
            raise InputError(f"--adapter {folder}: no {name} there: give the folder of a PEFT adapter")
    try:
        return dict(json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--adapter {folder}: adapter_config.json cannot be read: {error}: give another adapter"
        ) from None
