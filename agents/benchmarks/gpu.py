"""All figures of one CUDA device: a model with random weights in bfloat16 and in 4 bits, and a whole run.

python -m agents.bench gpu
"""

from __future__ import annotations

import json
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agents.benchmarks.architectures import read_architecture
from agents.benchmarks.model import (
    Figures,
    ModelConfig,
    limits,
    measured,
    peak_bytes,
    reset_peak,
    synchronized,
    table,
    write_figures,
    written_weights,
)
from agents.cli.display import say
from agents.cli.files import check_output
from agents.cli.values import require_counts
from envs.types import InputError

SIZES = ModelConfig()  # of its parts


@dataclass(frozen=True)
class GpuConfig:
    """All figures of one CUDA device: bfloat16, a whole run, and 4 bits. It takes about ten minutes."""

    random_weights: str = "mistral-7b"
    """An architecture in configs/architectures, with random weights."""
    cycles: int = 10
    """Cycles of the whole run; 0 leaves the run out."""
    four_bits: bool = True
    """Measure 4 bits too; needs bitsandbytes."""
    output: str = "gpu.json"
    """The JSON file, written anew after each part."""
    json: bool = False
    """Print only JSON."""

    def check(self) -> None:
        """Raises InputError for no such architecture."""
        require_counts(self, "cycles", least=0)
        read_architecture(self.random_weights)
        check_output(self.output, what="file")


def gpu(config: GpuConfig) -> int:
    """Measures part after part, and prints the table. A part that fails is reported, and the rest goes on."""
    import torch

    if not torch.cuda.is_available():
        fix = "run it where torch.cuda.is_available() holds; agents.bench model measures a CPU"
        raise InputError(f"agents.bench gpu: there is no CUDA device: {fix}")
    found: Figures = {"benchmark": "gpu", **asdict(config)}
    sizes = replace(SIZES, dtype="bfloat16")
    shared = Path("/dev/shm")  # as fast as memory; the weights of 7B take 14.5 GB
    room = shared.is_dir() and shutil.disk_usage(shared).free > 40e9
    with tempfile.TemporaryDirectory(dir=shared if room else None) as place:
        folder = Path(place) / "model"
        in_4bit = replace(sizes, load_in_4bit=True)

        def weights() -> Figures:
            written_weights(config.random_weights, folder)
            return {}

        parts: dict[str, Callable[[], Figures]] = {
            "limits": lambda: limits(torch.bfloat16),
            "weights": weights,
            "bfloat16": lambda: measured(str(folder), sizes, found["limits"]),
            "4 bits": lambda: measured(str(folder), in_4bit, found["limits"]),
            "run": lambda: whole_run(str(folder), config.cycles, Path(place)),
        }
        if not config.four_bits:
            del parts["4 bits"]
        if not config.cycles:
            del parts["run"]
        for name, part in parts.items():
            found[name] = attempted(part)
            reset_peak()
            write_figures(Path(config.output), found)
            say(f"{name}: {found[name]['seconds']:.0f} s {found[name].get('failed', '')}")
    if config.json:
        say(json.dumps(found))
    else:
        say(table({name: found[name] for name in ("bfloat16", "4 bits") if name in parts}))
    return int(any("failed" in found[name] for name in parts))


def attempted(part: Callable[[], Figures]) -> Figures:
    """A part's figures and its seconds; what went wrong, where it failed: the other parts go on."""
    started = synchronized()
    try:
        figures = part()
    except Exception as error:
        traceback.print_exc()
        figures = {"failed": f"{type(error).__name__}: {error}"}
    return {"seconds": synchronized() - started, **figures}


def whole_run(model: str, cycles: int, folder: Path, **settings: Any) -> Figures:
    """The documented run of `agents.rejection_sft` with `likelihood` -> its seconds by phase.

    Random weights write nothing that is a command: gates are off, so that all candidates are scored and some
    are learnt, and no command is executed. An answer has 24 tokens on average.
    """
    from agents import rejection_sft
    from agents.benchmarks.weights import let_answers_end

    let_answers_end(Path(model), 24)
    reset_peak()
    config = rejection_sft.Config(
        model=model,
        dtype="bfloat16",
        domain="shell",
        reward="likelihood",
        cycles=cycles,
        gates=False,
        force=True,
        output=str(folder / "runs"),
        name="bench",
        **settings,
    )
    config.check()
    started = synchronized()
    rejection_sft.main(config)
    seconds = synchronized() - started
    phases: dict[str, float] = {}
    run = folder / "runs" / "bench"
    lines = (run / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        for name, value in json.loads(line).items():
            if name.startswith("time/"):
                phases[name] = phases.get(name, 0.0) + value
    written = 2 * cycles * config.tasks * config.candidates
    return {"seconds": seconds, "candidates": written, "phases": phases, "peak_bytes": peak_bytes()}
