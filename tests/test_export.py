"""Export: what is taken by made-up scores, and that TRL's trainers see the tokens of generation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents import dpo
from agents.cli.command import run_command
from agents.export import Config, has_template, main
from agents.policy.load import load_policy
from agents.policy.names import EMBEDDED
from agents.policy.policy import Policy
from envs.domain import load_domain

ROOT = Path(__file__).resolve().parent.parent
Rows = list[dict[str, Any]]


def export(*words: str) -> int:
    return run_command(Config, main, [*words], "export")


def lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def row(
    cycle: int, task: str, command: str, score: float | None, accepted: bool = False, **others: Any
) -> dict[str, Any]:
    where = {
        "cycle": cycle,
        "phase": "before",
        "task_id": f"train/x/{task}",
        "domain": "shell",
        "task": task,
        "tool": "wc",
    }
    return {**where, "command": command, "score": score, "truncated": False, "accepted": accepted, **others}


ROWS: Rows = [
    row(1, "count α", "wc -l a", 0.9, True),
    row(1, "count α", "ls a", 0.2),
    row(1, "count α", "wc a", None),
    row(1, "show the date", "date", 0.5),
    row(1, "show the date", "date", 0.7, True),
    row(1, "show the date", "dat", 0.95, truncated=True),
    row(1, "after", "never", 1.0, True, phase="after"),
    row(2, "count α", "wc -l a", 0.6),
    row(2, "count α", "cat a", 0.55),
    row(2, "count α", "cat 'a", 0.6),
]


def make(folder: Path, rows: Rows = ROWS, **settings: Any) -> str:
    """A run's folder with these rollouts."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {"agent": "rejection_sft", "model": "embedded", "domain": "all", "candidates": 3, **settings}
        )
    )
    (folder / "rollouts.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return str(folder)


def test_a_command_with_a_closed_gate_is_no_positive_example(tmp_path: Path) -> None:
    closed, opened = {"parts": {"gate/valid": 0.0}}, {"parts": {"gate/valid": 1.0}}
    rows = [
        row(1, "count", "```sh", 0.0, True, **closed),
        row(1, "count", "wc -l a", -0.5, True, **opened),
        row(1, "count", "ls", -0.9, **opened),
        row(1, "show", "Sure!", 0.0, **closed),
        row(1, "show", "<think>", 0.0, **closed),
    ]
    folder, out = make(tmp_path / "a", rows), tmp_path / "out.jsonl"
    for select in ("accepted", "best"):
        assert export(folder, "--format", "sft", "--select", select, "--output", str(out)) == 0
        assert commands(out, "completion") == ["wc -l a"]
    assert export(folder, "--format", "dpo", "--margin", "0", "--output", str(out)) == 0
    assert (commands(out, "chosen"), commands(out, "rejected")) == (["wc -l a"], ["ls"])


def commands(path: Path, name: str) -> list[str]:
    return [example[name][0]["content"] for example in lines(path)]


def test_what_the_run_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sft.jsonl"
    assert export(make(tmp_path / "a"), "--format", "sft", "--output", str(out)) == 0
    prompt = load_domain("shell").prompt("forward", task="count α", tool="wc")
    assert lines(out)[0] == {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": "wc -l a"}],
    }
    assert commands(out, "completion") == ["wc -l a", "date"]
    about, last = capsys.readouterr().out.splitlines()
    assert about == (
        "2 examples for TRL's SFTTrainer, prompt, completion, as messages, since embedded has a chat template"
    )
    assert last == str(out)
    assert "α" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--select", "threshold"], ["wc -l a", "date", "date", "wc -l a", "cat a", "cat 'a"]),
        (["--select", "threshold", "--threshold", "0.65"], ["wc -l a", "date"]),
        (["--select", "best"], ["wc -l a", "date", "wc -l a"]),  # of equals the first; what was cut never
    ],
)
def test_what_is_selected_by_score(tmp_path: Path, flags: list[str], wanted: list[str]) -> None:
    assert export(make(tmp_path / "a"), "--output", str(tmp_path / "o"), *flags) == 0
    assert commands(tmp_path / "o", "completion") == wanted


@pytest.mark.parametrize(
    ("margin", "wanted"),
    [
        ("0.1", [("wc -l a", "ls a")]),
        ("0.01", [("wc -l a", "ls a"), ("wc -l a", "cat a")]),
        ("0", [("wc -l a", "ls a"), ("wc -l a", "cat a")]),
    ],
)
def test_pairs_by_margin(tmp_path: Path, margin: str, wanted: list[tuple[str, str]]) -> None:
    out = tmp_path / "o"
    assert export(make(tmp_path / "a"), "--format", "dpo", "--margin", margin, "--output", str(out)) == 0
    assert list(zip(commands(out, "chosen"), commands(out, "rejected"), strict=True)) == wanted
    assert set(lines(out)[0]) == {"prompt", "chosen", "rejected"}


def test_several_runs_and_a_run_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b", [row(1, "x", "pwd", 0.1, True)])
    with Path(second, "rollouts.jsonl").open("a") as log:
        log.write(json.dumps(row(1, "x", "half", 0.1, True))[:40])
    monkeypatch.chdir(tmp_path)
    assert export(second, first) == 0
    assert commands(tmp_path / "runs/export/b--a.sft.jsonl", "completion") == ["pwd", "wc -l a", "date"]


def test_a_domain_whose_path_was_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was started elsewhere: its settings have the whole path."""
    path = tmp_path / "elsewhere" / "mine.yaml"
    path.parent.mkdir()
    path.write_text((ROOT / "configs/domains/shell.yaml").read_text().replace("name: shell", "name: mine"))
    run = make(tmp_path / "a", [row(1, "x", "pwd", 0.1, True, domain="mine.yaml")], domain=f"shell,{path}")
    assert export(run, "--output", str(tmp_path / "o")) == 0
    assert lines(tmp_path / "o")[0]["prompt"][0]["content"] == load_domain("shell").prompt(
        "forward", task="x", tool="wc"
    )
    path.unlink()
    load_domain.cache_clear()


def test_it_needs_no_torch(tmp_path: Path) -> None:
    run, out = make(tmp_path / "a"), tmp_path / "o"
    words = [run, "--format", "dpo", "--output", str(out)]
    code = (
        "import sys\n"
        "from agents.export import Config, main\n"
        "from agents.cli.command import run_command\n"
        f"assert run_command(Config, main, {words!r}, 'export') == 0\n"
        "print({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.endswith("set()\n") and len(lines(out)) == 2


# ---- TRL takes the files ----


def settings(tmp: Path) -> dict[str, Any]:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    return {
        "output_dir": str(tmp / "trl"),
        "max_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        **quiet,
    }


def train_sft(folder: Path, data: Path, tmp: Path) -> Rows:
    """One step of TRL's SFTTrainer on the file, with its defaults -> what it made of the lines."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    dataset = load_dataset("json", data_files=str(data), split="train", cache_dir=str(tmp / "cache"))
    trainer = SFTTrainer(str(folder), args=SFTConfig(**settings(tmp)), train_dataset=dataset)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    return list(trainer.train_dataset)


def train_dpo(folder: Path, data: Path, tmp: Path) -> Rows:
    """The same with its DPOTrainer."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    dataset = load_dataset("json", data_files=str(data), split="train", cache_dir=str(tmp / "cache"))
    trainer = DPOTrainer(str(folder), args=DPOConfig(**settings(tmp)), train_dataset=dataset)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    return list(trainer.train_dataset)


def in_generation(policy: Policy, rows: Rows) -> list[tuple[list[int], list[int]]]:
    """Prompt ids in the generation template; ids of the command and the end of the sequence."""
    prompts = policy.prompt_ids(
        [load_domain(row["domain"]).prompt("forward", task=row["task"], tool=row["tool"]) for row in rows]
    )
    answers = policy.completion_ids([row["command"] for row in rows])
    return [(p, [*a, policy.tokenizer.eos_token_id]) for p, a in zip(prompts, answers, strict=True)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a cycle of online DPO, whose accepted candidates are those that it preferred."""
    folder = tmp_path_factory.mktemp("trained")
    argv = [
        "--model",
        "embedded",
        "--tasks",
        "12",
        "--eval-tasks",
        "6",
        "--eval-subset",
        "6",
        "--eval-samples",
        "1",
        "--cycles",
        "1",
    ]
    argv += ["--reward", "random", "--output", str(folder), "--name", "run"]
    assert run_command(dpo.Config, dpo.main, argv, "dpo") == 0
    return folder / "run"


@pytest.mark.slow
def test_sft_trainer_takes_it_and_sees_the_tokens_of_generation(trained: Path, tmp_path: Path) -> None:
    assert export(str(trained), "--select", "best", "--output", str(tmp_path / "o.jsonl")) == 0
    seen = train_sft(EMBEDDED["embedded"], tmp_path / "o.jsonl", tmp_path)
    groups = [lines(trained / "rollouts.jsonl")[start : start + 3] for start in range(0, 36, 3)]
    best = [
        max((row for row in group if not row["truncated"]), key=lambda row: row["score"]) for group in groups
    ]
    wanted = in_generation(load_policy("embedded"), best)
    assert [row["input_ids"] for row in seen] == [prompt + answer for prompt, answer in wanted]
    assert [row["labels"] for row in seen] == [
        [-100] * len(prompt) + answer for prompt, answer in wanted
    ]  # no loss on prompts
    # They are those that the model wrote, but where it wrote a word in other tokens than the tokenizer does.
    assert sum(
        answer[:-1] == row["token_ids"] for (_, answer), row in zip(wanted, best, strict=True)
    ) > 0.8 * len(best)


@pytest.mark.slow
def test_dpo_trainer_takes_it_and_sees_the_tokens_of_generation(trained: Path, tmp_path: Path) -> None:
    assert export(str(trained), "--format", "dpo", "--output", str(tmp_path / "o.jsonl")) == 0
    rows = lines(trained / "rollouts.jsonl")
    accepted = [row for row in rows if row["accepted"]]
    assert (
        commands(tmp_path / "o.jsonl", "chosen") == [row["command"] for row in accepted] and len(accepted) > 2
    )
    seen = train_dpo(EMBEDDED["embedded"], tmp_path / "o.jsonl", tmp_path)
    wanted = in_generation(load_policy("embedded"), accepted)
    assert [(row["prompt_ids"], row["chosen_ids"]) for row in seen] == wanted
    rejected = load_policy("embedded").completion_ids(commands(tmp_path / "o.jsonl", "rejected"))
    assert [row["rejected_ids"][:-1] for row in seen] == rejected


@pytest.mark.slow
def test_a_model_without_a_chat_template_gets_text(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plain` has no chat template: generation ends the prompt in a line feed, and so does the text."""
    rows, policy = (
        [row(1, "show the date", "date", 0.9, True), row(1, "show the date", "wc -l", 0.1)],
        load_policy(str(plain)),
    )
    run = make(tmp_path / "a", rows, model=str(plain))
    assert export(run, "--output", str(tmp_path / "sft")) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(f"as text, since {plain} has no chat template")
    ((prompt, answer),) = in_generation(policy, rows[:1])
    (seen,) = train_sft(plain, tmp_path / "sft", tmp_path)
    assert (seen["input_ids"], seen["labels"]) == (prompt + answer, [-100] * len(prompt) + answer)
    assert export(run, "--format", "dpo", "--output", str(tmp_path / "dpo")) == 0
    assert lines(tmp_path / "dpo")[0]["prompt"].endswith("show the date\n")
    (seen,) = train_dpo(plain, tmp_path / "dpo", tmp_path)
    assert [seen[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")] == [
        prompt,
        answer,
        in_generation(policy, rows[1:])[0][1],
    ]


def test_which_models_have_a_chat_template(
    pocket: Path, plain: Path, foreign_mistral: Path, tmp_path: Path
) -> None:
    assert [has_template(str(model)) for model in ("embedded", pocket, foreign_mistral)] == [True] * 3
    assert has_template(str(plain)) is False
    assert has_template("some/model-that-is-not-here") is None
    (tmp_path / "tokenizer_config.json").write_text(
        '{"chat_template": "{{ messages }}"}'
    )  # where older versions keep it
    assert has_template(str(tmp_path)) is True


def test_style_by_hand_and_where_it_is_not_known(
    tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make(tmp_path / "a", model="some/model-that-is-not-here"), tmp_path / "o"
    assert export(run, "--output", str(out)) == 0
    assert (
        "a chat template that some/model-that-is-not-here is taken to have: else give --style text"
        in capsys.readouterr().out
    )
    assert isinstance(lines(out)[0]["prompt"], list)
    assert export(run, make(tmp_path / "b", model=str(plain)), "--output", str(out), "--style", "text") == 0
    assert isinstance(lines(out)[0]["prompt"], str)


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no run is given: python -m agents.export"),
        (["nowhere"], "nowhere: no run is there (it has no config.yaml)"),
        (["RUN", "RUN"], "RUN: is given twice: leave one out"),
        (["RUN", "--format", "kto"], "--format kto: must be one of sft, dpo"),
        (["RUN", "--format", "dpo", "--margin", "-1"], "--margin -1.0: must be 0 or more"),
        (["RUN", "--select", "threshold", "--threshold", "nan"], "--threshold nan: must be a number"),
        (
            ["RUN", "--threshold", "0.9"],
            "--threshold 0.9: is for --format sft --select threshold: leave it out",
        ),
        (["RUN", "--margin", "0.1"], "--margin 0.1: is for --format dpo: leave it out"),
        (["RUN", "--format", "dpo", "--select", "best"], "--select best: is for --format sft"),
        (["RUN", "--format", "dpo", "--margin", "2"], "RUN: no example in it: lower --margin"),
        (["RUN", "--select", "threshold", "--threshold", "2"], "RUN: no example in it: lower --threshold"),
        (["EMPTY"], "EMPTY: no example in it: wait for a cycle to end"),
        (["PPO"], "PPO: nothing in it was accepted: give --select best or --select threshold"),
        (["RUN", "PPO"], "PPO: nothing in it was accepted"),
        (["DAMAGED"], "DAMAGED/rollouts.jsonl:2: the line is damaged, at score: restore the file"),
        (["NOJSON"], "NOJSON/rollouts.jsonl:1: not JSON (Expecting property name"),
        (["AWAY"], "AWAY: its domain cannot be read: /no/such.yaml: no such domain or file"),
        (["RUN", "PLAIN"], "--style: the models of the runs differ, "),
        (["RUN", "--output", "RUN/mine.jsonl"], "--output RUN/mine.jsonl: is in the folder of a run"),
        (["RUN", "--output", "out"], "--output out: is a folder: give the name of a file in it"),
        (["RUN", "--output", "RUN/config.yaml/mine"], "--output RUN/config.yaml/mine: cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path,
    plain: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (
        ("RUN", ROWS),
        ("EMPTY", []),
        ("PPO", [{**one, "accepted": False} for one in ROWS]),
        ("DAMAGED", [ROWS[0], {**ROWS[1], "score": "high"}]),
        ("AWAY", [{**ROWS[0], "domain": "/no/such.yaml"}]),
    ):
        make(Path(name), rows)
    make(Path("PLAIN"), model=str(plain))
    Path(make(Path("NOJSON")), "rollouts.jsonl").write_text("{\n")
    Path("out").mkdir()
    Path("out/o").write_text("what was there")
    before = sorted(tmp_path.rglob("*"))
    assert export(*flags, *([] if "--output" in flags else ["--output", "out/o"])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message) and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("out/o").read_text() == "what was there"


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make(tmp_path / "a"), tmp_path / "out" / "o"
    assert export(run, "--output", str(out)) == 0
    before = out.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert export(run, "--output", str(out), "--select", "best") == 2
    assert "cannot be written (No space left on device): choose another file" in capsys.readouterr().err
    assert out.read_bytes() == before and [path.name for path in out.parent.iterdir()] == ["o"]


def test_of_a_run_that_chose_it_is_what_it_trained_on(sql_run: Path, tmp_path: Path) -> None:
    assert export(str(sql_run), "--output", str(tmp_path / "o")) == 0
    metrics = lines(sql_run / "metrics.jsonl")[-1]
    assert len(lines(tmp_path / "o")) == metrics["train/examples"] > 0
