"""Numbers and threads of a model on a CPU: what is measured, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, LlamaConfig

from agents import rejection_sft
from agents.cli.command import run_command
from agents.policy import compute, load
from agents.policy.compute import Compute, on_cpu

LARGE = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30)
SMALL = LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=4, vocab_size=1024)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(short, two)`: a call takes a second, in bfloat16 1 / short, with two threads 1 / two."""

    def become(short: float, two: float) -> None:
        def seconds(call: Callable[[], Any]) -> list[float]:
            taken = 1.0 if torch.get_num_threads() == 1 else 1 / two
            return [taken / short if call().dtype == torch.bfloat16 else taken]

        monkeypatch.setattr(compute, "seconds", seconds)

    return become


@pytest.mark.parametrize(
    ("short", "two", "chosen"),
    [
        (1.8, 1.9, "bfloat16, 2 threads (bfloat16 is 1.8 times as fast, 2 threads are 1.9 times as fast)"),
        (0.13, 0.3, "float32, 1 thread (bfloat16 is 0.13 times as fast, 2 threads are 0.3 times as fast)"),
        (1.2, 1.2, "float32, 1 thread (bfloat16 is 1.2 times as fast, 2 threads are 1.2 times as fast)"),
    ],
)
def test_only_what_is_clearly_faster_is_chosen(
    machine: Callable[..., None], short: float, two: float, chosen: str
) -> None:
    machine(short, two)
    assert str(on_cpu(LARGE, "auto", None)) == chosen
    assert torch.get_num_threads() == 2  # whoever loads the model sets them


def test_what_is_given_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "seconds", lambda call: pytest.fail("something was measured"))
    assert str(on_cpu(LARGE, "bfloat16", 3)) == "bfloat16, 3 threads"
    assert str(on_cpu(SMALL, "auto", None)) == "float32, 1 thread"
    assert str(on_cpu(SMALL, "bfloat16", 2)) == "bfloat16, 2 threads"


def test_a_nested_configuration_is_that_of_its_text_model(machine: Callable[..., None]) -> None:
    machine(2.0, 0.5)
    assert on_cpu(Gemma3Config(), "auto", None).dtype == "bfloat16"


def test_a_measurement_is_one() -> None:
    calls: list[float] = []
    taken = compute.seconds(lambda: calls.append(torch.randn(999).sum().item()))
    assert len(calls) == len(taken) + 1 and min(taken) > 0


@pytest.mark.slow
def test_a_run_records_what_was_chosen_and_goes_on_with_it(
    pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*argv: str) -> str:
        assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0
        return capsys.readouterr().out

    budget = "--tasks 2 --eval-tasks 1 --eval-subset 1 --eval-samples 1 --max-new-tokens 4 --reward random"
    where = f"--domain network --output {tmp_path} --name run"
    said = train(*f"--model {pocket} --cycles 1 --threads 2 {budget} {where}".split())
    assert "LoRA of rank 16 on 1 q_proj, 1 k_proj, 1 v_proj, 1 o_proj; float32, 2 threads\n" in said
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["compute"]
    assert recorded == {"dtype": "float32", "threads": 2, "measured": {}}

    monkeypatch.setattr(
        load, "on_cpu", lambda config, dtype, threads: Compute(dtype, threads, {"other": 1.0})
    )
    assert "float32, 2 threads" in train(*f"--resume {tmp_path / 'run'} --cycles 2".split())
    again = json.loads((tmp_path / "run" / "environment.json").read_text())["compute"]
    assert again == recorded
