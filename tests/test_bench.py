"""The benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sandboxes import needs_sandbox, with_bwrap

from agents import bench


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
