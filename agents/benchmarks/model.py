"""How fast a model writes, scores and trains, against what its machine could do at most.

    python -m agents.bench model --model smollm2
    python -m agents.bench model --random-weights mistral-7b --json

The limits are measured first: bytes per second of a large copy, and operations per second of a large matrix
product. Writing a token must read all weights and the keys and values of what stands before it. Scoring and
training must do two operations for each weight and token, and as many again for each gradient that is
computed. What takes longer than that is overhead: of many small kernels, of Python, of padding.
"""

from __future__ import annotations

import gc
import json
import math
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from agents.benchmarks.architectures import read_architecture
from agents.cli.display import say
from agents.cli.files import check_output, write_whole
from agents.cli.values import require_counts
from agents.policy.folders import check_model

REPETITIONS = 3  # of each measurement, after one that only warms up; medians are reported
Figures = dict[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    """Tokens per second of writing, scoring and training, and their share of what the machine could do."""

    model: str | None = None
    """A model as for the trainers. Default: embedded."""
    random_weights: str | None = None
    """An architecture in configs/architectures, with random weights in place of a model."""
    load_in_4bit: bool = False
    """Load the model in 4 bits (CUDA only)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the model."""
    threads: int | None = None
    """Threads of the CPU."""
    tasks: int = 32
    """Tasks of the shell domain."""
    candidates: int = 4
    """Commands written for each task."""
    batch_size: int = 128
    """Sequences that are written or scored together."""
    train_batch_size: int = 4
    """Examples of a training step."""
    max_new_tokens: int = 48
    """Longest command, in tokens."""
    output: str | None = None
    """Also write the figures to this JSON file."""
    json: bool = False
    """Print only JSON."""

    def check(self) -> None:
        """Raises InputError for a value out of range, or no such model."""
        require_counts(self, "tasks", "candidates", "batch_size", "train_batch_size", "max_new_tokens")
        require_counts(self, "threads")
        if self.random_weights is not None:
            read_architecture(self.random_weights)
        check_output(self.output, what="file")
        check_model(self.model or "embedded")


# ---- the limits ----


def synchronized() -> float:
    """The time when all that the device was asked for is done, in seconds."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], Any], repetitions: int = REPETITIONS) -> float:
    """The median time of a call, in seconds; the first call only warms up."""
    work()
    taken = []
    for _ in range(repetitions):
        started = synchronized()
        work()
        taken.append(synchronized() - started)
    return median(taken)


def limits(dtype: Any) -> Figures:
    """Bytes per second of a large copy, both ways counted, and operations per second of a matrix product."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, width = (2**31, 8192) if device == "cuda" else (2**28, 2048)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = torch.randn(2, width, width, device=device).to(dtype)
    copied = seconds_of(lambda: target.copy_(source))
    multiplied = seconds_of(lambda: left @ right)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bytes_per_second": 2 * size / copied,
        "operations_per_second": 2 * width**3 / multiplied,
    }


# ---- one model ----


class Bench:
    """The figures of one loaded policy.

    Args:
        policy: it is trained on what it writes, and worth nothing afterwards.
        sizes: tasks, candidates and the like.
        reached: what `limits` found.
    """

    def __init__(self, policy: Any, sizes: ModelConfig, reached: Figures) -> None:
        from envs.prompts import forward_prompt, inverse_prompt
        from envs.source import make_source

        self.policy, self.sizes, self.reached = policy, sizes, reached
        self.tasks = make_source("templates", "shell").tasks(sizes.tasks, 0, "bench")
        self.asked = [forward_prompt(task) for task in self.tasks]
        self.inverse_prompt = inverse_prompt
        # An embedding that is not the output's is looked up, not multiplied.
        tied = policy.model.get_input_embeddings().weight is policy.model.get_output_embeddings().weight
        looked_up = policy.model.get_input_embeddings().weight
        self.bytes = sum(weight.numel() * weight.element_size() for weight in policy.model.parameters())
        self.weights = sum(map(numbers_of, policy.model.parameters()))
        if not tied:
            self.bytes -= looked_up.numel() * looked_up.element_size()
            self.weights -= looked_up.numel()

    def figures(self) -> Figures:
        """All of them, by phase."""
        found: Figures = {"weights": self.weights, "weight_bytes": self.bytes}
        for name, phase in (
            ("one_row", self.one_row),
            ("writing", self.writing),
            ("rows_alone", self.rows_alone),
            ("scoring", self.scoring),
            ("training", self.training),
        ):
            reset_peak()
            found[name] = {**phase(), "peak_bytes": peak_bytes()}
        return found

    def cache_bytes(self, tokens: int) -> float:
        """Keys and values of so many tokens."""
        import torch

        from agents.policy.footprint import cached_numbers

        element: int = getattr(torch, self.policy.compute.dtype).itemsize
        return float(tokens * cached_numbers(self.policy.model.config.get_text_config()) * element)

    def written(self, asked: Sequence[Any], candidates: int) -> tuple[float, int, int]:
        """Writes -> seconds, tokens in all, and tokens of the longest answer."""
        lengths: list[int] = []

        def write() -> None:
            rows = self.policy.generate(
                asked, candidates, temperature=0.7, max_new_tokens=self.sizes.max_new_tokens
            )
            lengths[:] = [len(completion.token_ids) for row in rows for completion in row]

        return seconds_of(write), sum(lengths), max(lengths)

    def one_row(self) -> Figures:
        """One answer alone: every step reads all weights for one token."""
        seconds, tokens, steps = self.written(self.asked[:1], 1)
        least = steps * self.bytes / self.reached["bytes_per_second"]
        return {
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / steps,
            "share_of_bandwidth": least / seconds,
            **busy(lambda: self.policy.generate(self.asked[:1], 1, temperature=0.7, max_new_tokens=16)),
        }

    def writing(self) -> Figures:
        """All candidates of all tasks; and the same batch by transformers alone."""
        seconds, tokens, steps = self.written(self.asked, self.sizes.candidates)
        prompts = self.policy.prompt_ids(self.asked)
        rows = len(prompts) * self.sizes.candidates
        batches = math.ceil(rows / self.sizes.batch_size)
        # On average half of the answer stands in the cache.
        before = sum(map(len, prompts)) * self.sizes.candidates + tokens / 2
        read = batches * self.bytes + self.cache_bytes(int(before))
        bare = seconds_of(lambda: self.bare(prompts))
        return {
            "rows": rows,
            "prompt_tokens": sum(map(len, prompts)) / len(prompts),
            "tokens_per_second": tokens / seconds,
            "candidates_per_second": rows / seconds,
            "seconds_per_step": seconds / steps / batches,
            "share_of_bandwidth": steps * read / self.reached["bytes_per_second"] / seconds,
            "times_bare": seconds / bare,
        }

    def bare(self, prompts: Sequence[Sequence[int]]) -> None:
        """The same rows by `generate` of transformers, with nothing of ours."""
        import torch

        policy = self.policy
        rows = [list(ids) for ids in prompts for _ in range(self.sizes.candidates)]
        for start in range(0, len(rows), self.sizes.batch_size):
            batch = {"input_ids": rows[start : start + self.sizes.batch_size]}
            padded = policy.tokenizer.pad(batch, return_tensors="pt", padding_side="left")
            with torch.no_grad():
                policy.model.generate(
                    **padded.to(policy.device),
                    do_sample=True,
                    temperature=0.7,
                    top_k=0,
                    max_new_tokens=self.sizes.max_new_tokens,
                    pad_token_id=policy.pad,
                    eos_token_id=sorted(policy.ends),
                )

    def rows_alone(self) -> Figures:
        """How many greedy answers are the same in a batch and alone."""
        asked = self.asked[:4]
        limit = self.sizes.max_new_tokens
        together = self.policy.generate(asked, temperature=0.0, max_new_tokens=limit)
        same = 0
        for prompt, [answer] in zip(asked, together, strict=True):
            [[alone]] = self.policy.generate([prompt], temperature=0.0, max_new_tokens=limit)
            same += answer.token_ids == alone.token_ids
        return {"rows": len(asked), "same": same}

    def pairs(self) -> list[tuple[Any, Any]]:
        """An inverse prompt with a command, and the task that is scored after it, for each candidate."""
        rows = self.policy.generate(
            self.asked, self.sizes.candidates, temperature=0.7, max_new_tokens=self.sizes.max_new_tokens
        )
        asked, texts = [], []
        for task, row in zip(self.tasks, rows, strict=True):
            for completion in row:
                asked.append(self.inverse_prompt(task, completion.text))
                texts.append(task.text)
        ids = zip(self.policy.prompt_ids(asked), self.policy.completion_ids(texts), strict=True)
        return list(ids)

    def scoring(self) -> Figures:
        """Log-probabilities of the tasks, given the candidates."""
        pairs = self.pairs()
        reset_peak()
        seconds = seconds_of(lambda: self.policy.logprobs_of_ids(pairs))
        tokens = sum(len(prompt) + len(completion) for prompt, completion in pairs)
        least = 2 * self.weights * tokens / self.reached["operations_per_second"]
        return {
            "pairs_per_second": len(pairs) / seconds,
            "tokens_per_second": tokens / seconds,
            "share_of_operations": least / seconds,
        }

    def training(self) -> Figures:
        """An update by fine-tuning on the pairs that were scored."""
        from agents.training.update import fine_tune

        examples = self.pairs()[: 8 * self.sizes.train_batch_size]
        reset_peak()
        tokens = sum(len(prompt) + len(completion) for prompt, completion in examples)

        def train() -> None:
            fine_tune(
                self.policy,
                examples,
                lr=1e-6,
                batch_size=self.sizes.train_batch_size,
                epochs=1,
                stream_parts=(0, "bench"),
            )

        seconds = seconds_of(train)
        # Forwards once, or twice where activations are computed again, and backwards through the states.
        passes = 3 if self.policy.checkpointing else 2
        least = 2 * passes * self.weights * tokens / self.reached["operations_per_second"]
        return {
            "examples_per_second": len(examples) / seconds,
            "tokens_per_second": tokens / seconds,
            "share_of_operations": least / seconds,
        }


def numbers_of(weight: Any) -> int:
    """How many numbers a parameter stands for; 4 bits are packed two by two."""
    shape = getattr(getattr(weight, "quant_state", None), "shape", None)
    return math.prod(shape) if shape is not None else int(weight.numel())


def busy(work: Callable[[], Any]) -> Figures:
    """The share of the time in which the device computes; nothing on a CPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    seconds = seconds_of(work, 1)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        torch.cuda.synchronize()
    kernels = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    computing = sum(event.self_device_time_total for event in kernels) / 1e6
    return {"share_busy": computing / seconds, "kernels": len(kernels)}


def reset_peak() -> None:
    """Begins to watch the device's memory anew."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """The most memory that tensors took on the device; on a CPU, what the process took since it began."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(name: str, sizes: ModelConfig, reached: Figures | None = None) -> Figures:
    """Loads a model and measures it."""
    import torch

    from agents.policy.load import load_policy

    reset_peak()
    started = synchronized()
    policy = load_policy(
        name,
        load_in_4bit=sizes.load_in_4bit,
        dtype=sizes.dtype,
        threads=sizes.threads,
        batch_size=sizes.batch_size,
    )
    loaded = synchronized() - started
    reached = reached or limits(getattr(torch, policy.compute.dtype))
    figures = Bench(policy, sizes, reached).figures()
    return {"dtype": policy.compute.dtype, "load_seconds": loaded, "limits": reached, **figures}


def model(config: ModelConfig) -> int:
    """Prints what `measured` found."""
    with tempfile.TemporaryDirectory() as folder:
        name = config.model or "embedded"
        if config.random_weights:
            name = written_weights(config.random_weights, Path(folder))
        figures = {"benchmark": "model", **asdict(config), **measured(name, config)}
    if config.output:
        write_figures(Path(config.output), figures)
    say(json.dumps(figures) if config.json else table({config.random_weights or name: figures}))
    return 0


def write_figures(path: Path, figures: Figures) -> None:
    """Writes a JSON file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(figures, indent=1))


def written_weights(architecture: str, folder: Path) -> str:
    """Writes a model with random weights into a folder -> its name."""
    from agents.benchmarks.weights import write_random

    say(f"random weights of {architecture}")
    write_random(architecture, folder)
    return str(folder)


ROWS = (  # of the table: what, phase, figure, how it is shown
    ("one answer alone, tokens/s", "one_row", "tokens_per_second", "{:.1f}"),
    ("... share of the bandwidth", "one_row", "share_of_bandwidth", "{:.2f}"),
    ("... share of the time in which the device computes", "one_row", "share_busy", "{:.2f}"),
    ("writing, tokens/s", "writing", "tokens_per_second", "{:,.0f}"),
    ("... candidates/s", "writing", "candidates_per_second", "{:.1f}"),
    ("... share of the bandwidth", "writing", "share_of_bandwidth", "{:.2f}"),
    ("... times as long as transformers alone", "writing", "times_bare", "{:.2f}"),
    ("scoring, tokens/s", "scoring", "tokens_per_second", "{:,.0f}"),
    ("... share of the operations", "scoring", "share_of_operations", "{:.2f}"),
    ("training, tokens/s", "training", "tokens_per_second", "{:,.0f}"),
    ("... share of the operations", "training", "share_of_operations", "{:.2f}"),
    ("greedy answers of 4 that are the same alone", "rows_alone", "same", "{}"),
    ("peak memory of writing, bytes", "writing", "peak_bytes", "{:,}"),
    ("peak memory of training, bytes", "training", "peak_bytes", "{:,}"),
)


def table(models: dict[str, Figures]) -> str:
    """A table in Markdown, one column for each model."""
    lines = [f"| | {' | '.join(models)} |", "|---|" + "---:|" * len(models)]
    for label, phase, key, form in ROWS:
        cells = []
        for figures in models.values():
            value = figures.get(phase, {}).get(key)
            cells.append("" if value is None else form.format(value))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)
