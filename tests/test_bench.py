"""The benchmarks."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from sandboxes import needs_sandbox, with_bwrap

from agents import bench
from agents.benchmarks import architectures as shapes
from agents.benchmarks import gpu, model, weights
from agents.policy.load import load_policy


@needs_sandbox
def test_the_benchmark_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["sandbox", "--commands", "3", "--threads", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["benchmark"], result["commands"], result["threads"]) == ("sandbox", 3, 2)
    assert set(result["median_ms"]) == set(result["p95_ms"]) == {"sandbox", "bash"}
    assert min(*result["median_ms"].values(), *result["p95_ms"].values(), result["commands_per_second"]) > 0


@needs_sandbox
def test_the_benchmark_prints_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["sandbox", "--commands", "1", "--threads", "1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "sandbox",
        "bash",
        "sandbox",
    ]


@pytest.mark.parametrize("flags", [["--commands", "0"], ["--threads", "-1"]])
def test_the_benchmark_refuses_what_is_out_of_range(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["sandbox", *flags]) == 2
    assert f"{' '.join(flags)}: must be 1 or more" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh")
def test_the_benchmark_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_bwrap(tmp_path, monkeypatch, None)
    assert bench.main(["sandbox"]) == 2
    assert capsys.readouterr().err == "error: bubblewrap is not installed: apt-get install bubblewrap\n"


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--num-envs", "0", "must be 1 or more"),
        ("--repetitions", "0", "must be 1 or more"),
        ("--domain", "sheel", "did you mean shell?"),
        ("--reward", "similarty", "no such reward: did you mean similarity?"),
    ],
)
def test_the_environments_benchmark_refuses_what_is_not_there(
    flag: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["env", flag, value]) == 2
    assert capsys.readouterr().err == f"error: {flag} {value}: {wanted}\n"


@pytest.mark.slow
def test_the_environments_benchmark_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        bench.main(["env", "--num-envs", "2", "--repetitions", "3", "--reward", "likelihood", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    rates = result["repetitions_episodes_per_second"]
    assert {side: len(values) for side, values in rates.items()} == {"single": 3, "batched": 3}
    assert min(rates["single"] + rates["batched"]) > 0
    assert result["ratio"] == sorted(rates["batched"])[1] / sorted(rates["single"])[1]
    assert "json" not in result


TINY = """
model_type: mistral
vocab_size: 1200
hidden_size: 32
intermediate_size: 64
num_hidden_layers: 2
num_attention_heads: 4
num_key_value_heads: 2
tie_word_embeddings: {tied}
"""
SMALL = {"tasks": 2, "candidates": 2, "batch_size": 3, "max_new_tokens": 6}


@pytest.fixture
def architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures that take no time, in place of the real ones."""
    (tmp_path / "tiny.yaml").write_text(TINY.format(tied="false"))
    (tmp_path / "tied.yaml").write_text(TINY.format(tied="true"))
    monkeypatch.setattr(shapes, "ARCHITECTURES", tmp_path)
    monkeypatch.setattr(model, "REPETITIONS", 1)


@pytest.mark.usefixtures("architectures")
@pytest.mark.parametrize("architecture", ["tiny", "tied"])
def test_a_model_with_random_weights_is_measured(
    architecture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    output = tmp_path / "figures.json"
    words += ["--random-weights", architecture, "--dtype", "float32", "--json", "--output", str(output)]
    assert bench.main(["model", *words]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(output.read_text())
    # Embeddings 1200 x 32; a layer: q, o 32 x 32, k, v 32 x 16, three of 32 x 64, two norms; a last norm.
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    lora = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16))  # of rank 16 in two layers
    assert result["weights"] == 1200 * 32 + 2 * layer + 32 + lora
    assert result["weight_bytes"] == 4 * result["weights"]
    assert result["writing"]["rows"] == 4
    for phase, rate in (
        ("one_row", "tokens_per_second"),
        ("writing", "candidates_per_second"),
        ("scoring", "pairs_per_second"),
        ("training", "tokens_per_second"),
    ):
        assert result[phase][rate] > 0
    assert result["rows_alone"]["same"] == result["rows_alone"]["rows"] == 2


@pytest.mark.usefixtures("architectures")
def test_random_weights_write_as_many_tokens_as_are_asked_for_unless_answers_may_end(tmp_path: Path) -> None:
    weights.write_random("tiny", tmp_path / "model")
    prompts = [f"task {number}" for number in range(30)]
    rows = load_policy(str(tmp_path / "model")).generate(prompts, temperature=1.0, max_new_tokens=9)
    assert {len(row[0].token_ids) for row in rows} == {9}

    weights.let_answers_end(tmp_path / "model", 3)
    rows = load_policy(str(tmp_path / "model")).generate(prompts, temperature=1.0, max_new_tokens=9)
    assert len({len(row[0].token_ids) for row in rows}) > 3


@pytest.mark.usefixtures("architectures")
def test_an_unknown_architecture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["model", "--random-weights", "tinny"]) == 2
    assert capsys.readouterr().err == (
        "error: --random-weights tinny: no such architecture: did you mean tiny?\n"
    )


def test_a_gpu_is_measured_where_there_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench.main(["gpu"]) == 2
    assert capsys.readouterr().err.startswith("error: agents.bench gpu: there is no CUDA device: ")


@pytest.mark.slow
@pytest.mark.usefixtures("architectures")
def test_a_part_that_fails_does_not_cost_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The parts of `gpu` on a CPU: it is asked once whether there is a GPU, and 4 bits need one."""
    answers = iter([True])
    monkeypatch.setattr("torch.cuda.is_available", lambda: next(answers, False))
    monkeypatch.setattr(gpu, "SIZES", model.ModelConfig(**SMALL))
    short = {"tasks": 2, "eval_tasks": 2, "eval_subset": 1, "eval_samples": 1, "epochs": 1}
    monkeypatch.setattr(gpu, "whole_run", functools.partial(gpu.whole_run, **short))
    output = tmp_path / "gpu.json"
    assert gpu.gpu(gpu.GpuConfig("tiny", cycles=1, output=str(output))) == 1
    found = json.loads(output.read_text())
    assert "needs a CUDA device" in found["4 bits"]["failed"]
    assert found["bfloat16"]["writing"]["tokens_per_second"] > 0
    assert found["run"]["candidates"] == 12
    assert set(found["run"]["phases"]) >= {"time/generate", "time/reward", "time/train", "time/evaluate"}
    assert "| | bfloat16 | 4 bits |" in capsys.readouterr().out
