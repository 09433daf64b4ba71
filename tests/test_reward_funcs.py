"""Our rewards for TRL, and docs/ENVIRONMENT.md, whose code is run as it stands."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.domain import load_domain
from envs.source import Templates
from envs.types import InputError, Score, Task
from rewards.registry import make_reward
from rewards.trl import COLUMNS, as_reward_func, task_row, text_of

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "ENVIRONMENT.md"
TASKS = [
    Task("a", "shell", "list files", "ls"),
    Task("b", "shell", "show the date", "date"),
    Task("c", "network", "ping x", "ping"),
]


class Recorder:
    """Scores a command by its length, abstains on the empty one, and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Task], list[list[str]], int]] = []

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        self.calls.append((list(tasks_P), [list(row) for row in commands_P_G], seed))
        return [[Score(float(len(command)) if command else None) for command in row] for row in commands_P_G]


def columns(tasks: Sequence[Task], group: int = 1) -> dict[str, list[Any]]:
    """What TRL hands a reward function with the completions: the dataset's columns, for each candidate."""
    rows = [task_row(task) for task in tasks for _ in range(group)]
    return {
        "prompts": [row["prompt"] for row in rows],
        **{name: [row[name] for row in rows] for name in COLUMNS},
    }


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_flat_rows_become_groups_and_scores_come_back_flat() -> None:
    reward = Recorder()
    written = ["x", "bb", "", "dddd", "eeeee", "", "ggg", "hh", "y"]
    scores = as_reward_func(reward)(
        completions=[said(text) for text in written], completion_ids=[[1]] * 9, **columns(TASKS, 3)
    )
    [(tasks, commands, _)] = reward.calls
    assert tasks == TASKS
    assert commands == [["x", "bb", ""], ["dddd", "eeeee", ""], ["ggg", "hh", "y"]]
    assert scores == [1.0, 2.0, None, 4.0, 5.0, None, 3.0, 2.0, 1.0]


def test_groups_may_differ_in_size_and_a_task_may_come_again() -> None:
    reward = Recorder()
    tasks = [TASKS[0], TASKS[0], TASKS[1], TASKS[0]]
    as_reward_func(reward)(completions=["x", "b", "c", "d"], **columns(tasks))
    assert reward.calls[0][:2] == ([TASKS[0], TASKS[1], TASKS[0]], [["x", "b"], ["c"], ["d"]])


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("ls -l", "ls -l"),
        ("  ls -l  \nexplained", "ls -l"),
        ("\n \n\tls -l\r\nmore", "ls -l"),
        (said("\nls\nmore"), "ls"),
        ([{"role": "tool", "content": "x"}, {"role": "assistant", "content": "ls"}], "ls"),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
        ("\n\n", ""),
    ],
)
def test_the_first_line_of_a_completion_is_scored(written: Any, line: str) -> None:
    reward = Recorder()
    as_reward_func(reward)(completions=[written], **columns(TASKS[:1]))
    assert reward.calls[0][1] == [[line]]


def test_the_line_is_the_one_that_the_policy_reads(loaded: Any) -> None:
    for text in ("ls -l", "\n  ls\nmore", " \n\nls \n\nmore\n", "ls"):
        [ids] = loaded.completion_ids([text])
        reward = Recorder()
        as_reward_func(reward)(completions=[text_of(loaded.tokenizer.decode(ids))], **columns(TASKS[:1]))
        assert reward.calls[0][1] == [[loaded.completion(ids, [0.0] * len(ids)).text]]


def test_random_numbers_are_those_of_the_seed_and_the_step() -> None:
    def seed(own: int, step: int | None) -> int:
        reward = Recorder()
        state = {} if step is None else {"trainer_state": SimpleNamespace(global_step=step)}
        as_reward_func(reward, own)(completions=["x"], **columns(TASKS[:1]), **state)
        return reward.calls[0][2]

    assert seed(0, 5) == seed(0, 5)
    assert seed(0, None) == seed(0, 0)
    assert len({seed(0, 0), seed(0, 5), seed(0, 6), seed(1, 5)}) == 4


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_score_that_is_not_a_number_is_an_error_and_no_abstention(number: float) -> None:
    """TRL takes NaN for None."""

    def faulty(
        tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        return [[Score(None), Score(number)]]

    with pytest.raises(ValueError, match=rf"gave {number} to the command 'ls' of the task 'list files'"):
        as_reward_func(faulty)(completions=["", "ls"], **columns(TASKS[:1], 2))


@pytest.mark.parametrize("missing", COLUMNS)
def test_a_missing_column_is_named(missing: str) -> None:
    given = {name: values for name, values in columns(TASKS).items() if name != missing}
    with pytest.raises(
        InputError, match=f"^the dataset has no column {missing}: make its rows with rewards.trl.task_row"
    ) as error:
        as_reward_func(Recorder())(completions=["a", "b", "c"], **given)
    assert "\n" not in str(error.value)


def test_a_row_holds_the_prompt_and_the_task() -> None:
    [task] = Templates([load_domain("sql")]).tasks(1, 0)
    row = task_row(task)
    assert [row[name] for name in COLUMNS] == [task.id, task.domain, task.text, task.tool]
    domain = load_domain("sql")
    assert row["prompt"] == [
        {"role": "system", "content": domain.system},
        {"role": "user", "content": domain.prompt("forward", task=task.text, tool=task.tool)},
    ]


def test_a_reward_that_asks_the_model_in_training_mode_gets_its_answers_without_dropout(policy: Any) -> None:
    reward = make_reward("likelihood", policy, [], gates=False)
    [expected] = reward(TASKS[:1], [["ls -l", "date"]])
    policy.model.train()
    try:
        found = as_reward_func(reward)(completions=["ls -l", "date"], **columns(TASKS[:1], 2))
        assert policy.model.training
    finally:
        policy.model.eval()
    assert found == [score.value for score in expected]


def test_it_needs_neither_trl_nor_torch() -> None:
    code = (
        "import sys, rewards.trl\n"
        "loaded = {'trl', 'torch', 'agents'} & set(sys.modules)\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stderr) == (0, "")


# --- docs/ENVIRONMENT.md

SMALLER = {
    "range(20)": "range(2)",
    "num_envs=64": "num_envs=3",
    "range(5)": "range(2)",
    "tasks(500, 0)": "tasks(20, 0)",
    "max_steps=50": "max_steps=2",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def executed(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs a block in an empty folder, with smaller numbers -> its variables."""
    for number, smaller in SMALLER.items():
        block = block.replace(number, smaller)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block, str(DOCUMENT), "exec"), names)
    return names


def test_every_block_of_the_document_is_known_here() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert len(blocks("python")) == 3 and len(blocks("bash")) == 1 and text.count("```") == 8
    assert all(text.count(number) == 1 for number in SMALLER)


def test_the_documented_gymnasium_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = executed(blocks("python")[0], tmp_path, monkeypatch)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all(re.fullmatch(r"[01]\.\d\d  .+  ->  .+", line) for line in printed)
    assert names["terminated"] is True and names["info"]["domain"] == "network"


def test_the_documented_vector_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = executed(blocks("python")[1], tmp_path, monkeypatch)
    assert len(names["commands"]) == len(names["tasks"]) == len(names["rewards"]) == 3
    assert len(names["means"]) == 2 and all(0 < mean < 1 for mean in names["means"])


@pytest.mark.slow
def test_the_documented_trl_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    names = executed(blocks("python")[2], tmp_path, monkeypatch)
    steps = [row for row in names["trainer"].state.log_history if "loss" in row]
    assert len(steps) == 2 and all(0 < row["reward"] < 1 for row in steps)
    assert (tmp_path / "runs" / "trl" / "adapter" / "adapter_model.safetensors").is_file()
    assert any(
        tensor.abs().max() > 0 for name, tensor in names["policy"].snapshot().items() if "lora_B" in name
    )  # zero before


def test_the_documented_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    import importlib

    from agents.cli.command import parse
    from agents.training import trl_config

    find = trl_config.find_spec
    monkeypatch.setattr(
        trl_config, "find_spec", lambda name: find(name) or find("trl")
    )  # as if vLLM were installed
    for line in blocks("bash")[0].splitlines():
        [found] = re.findall(r"^python -m agents\.(\w+) (.*)$", line)
        argv = found[1].split()
        config, _ = parse(
            importlib.import_module(f"agents.{found[0]}").Config,
            argv if "--model" in argv else [*argv, "--model", "embedded"],
        )
        assert config.trl == (tuple(word for word in argv if "=" in word))
