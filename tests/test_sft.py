"""Supervised fine-tuning learns, ends early and resumes to the same bytes; labels are counted and travel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import kill_after_the_first_of_three
from references import reference

from agents import export, rejection_sft
from agents.cli.command import run_command
from agents.policy.labels import read_labels, write_labels
from agents.policy.load import load_policy
from agents.sft import Config, best_of, in_words, is_over, main
from agents.studies.card import card
from agents.studies.comparison import make_report
from agents.studies.folder import is_finished
from agents.studies.runs import read_run
from agents.training import session as session_module
from agents.training import supervised
from agents.training.pairs import Pair, draw_pairs, held_back, read_pairs, some_of
from agents.training.supervised import Schedule, batches_of, forward_examples, inverse_examples
from envs.domain import load_domain
from envs.types import InputError, Task

NETWORK, SQL = load_domain("network"), load_domain("sql")
SMALL = ["--domain", "network", "--tasks", "2", "--eval-tasks", "3", "--eval-subset", "2"]
SMALL += ["--eval-samples", "1", "--max-new-tokens", "8"]
FEW = ["--examples", "24", "--lr", "0.01", *SMALL]


def run(model: Path, tmp: Path, name: str, *flags: str) -> Path:
    """Runs the command in this process -> the run's folder."""
    argv = ["--model", str(model), "--output", str(tmp), "--name", name, *FEW, *flags]
    assert run_command(Config, main, argv, "sft") == 0
    return tmp / name


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line of an error."""
    assert run_command(Config, main, [*SMALL, *flags], "sft") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("error: ").strip()


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "self_improvement_results.json").read_text()))


def curve(folder: Path, metric: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[metric] for row in rows if metric in row]


@pytest.fixture(scope="module")
def finished(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two passes over 24 pairs, both directions. A test that changes it takes a copy."""
    return run(pocket, tmp_path_factory.mktemp("sft"), "a", "--cycles", "2")


# ---- learning ----


def test_it_learns_and_writes_what_every_run_writes(finished: Path) -> None:
    losses = curve(finished, "validation/loss")
    assert len(losses) == 3  # one before training
    assert losses[0] > losses[1] > losses[2]
    for metric in ("validation/forward", "validation/inverse"):
        assert curve(finished, metric)[0] > curve(finished, metric)[-1]
    assert curve(finished, "train/examples") == [44.0, 44.0]  # 22 pairs in both directions
    assert curve(finished, "train/steps") == [3.0, 3.0]
    assert len(curve(finished, "train/loss")) == len(curve(finished, "reward/mean")) == 2
    results = results_of(finished)
    assert {"eval/greedy", "eval/greedy/low"} <= set(results["eval"]["start"]) & set(results["eval"]["end"])
    assert (results["labelled"], results["kept"]) == (True, 2)


@pytest.mark.slow
def test_forwards_alone(pocket: Path, tmp_path: Path) -> None:
    folder = run(pocket, tmp_path, "a", "--cycles", "1", "--no-both-directions")
    assert curve(folder, "train/examples") == [22.0]
    assert curve(folder, "validation/forward") == curve(folder, "validation/loss")
    assert not curve(folder, "validation/inverse")


@pytest.mark.slow
def test_nothing_held_back(pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(pocket, tmp_path, "a", "--cycles", "1", "--validation", "0")
    assert curve(folder, "train/examples") == [48.0]
    assert not curve(folder, "validation/loss")
    assert results_of(folder)["labels"] == {"start": 0, "end": 24}
    assert "kept:" not in capsys.readouterr().out


def test_an_example_is_the_prompt_of_generation_the_text_and_the_end(policy: Any) -> None:
    pair = Pair(Task("t", "network", "ping db.test 5 times", "ping"), "ping -c 5 db.test")
    end = policy.tokenizer.eos_token_id
    for examples, asked, answer in (
        (forward_examples(policy, [pair]), "ping db.test 5 times", "ping -c 5 db.test"),
        (inverse_examples(policy, [pair]), "ping -c 5 db.test", "ping db.test 5 times"),
    ):
        [(prompt, completion)] = examples
        assert list(completion) == [*policy.completion_ids([answer])[0], end]
        assert asked in policy.tokenizer.decode(prompt)


def test_the_learning_rate_rises_and_falls() -> None:
    schedule = Schedule(peak=1.0, warmup=3, steps=10)
    rates = [schedule.at(step) for step in range(10)]
    assert rates[:3] == [0.25, 0.5, 0.75]
    assert rates[3] == 1.0
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[9] < 0.2
    assert [Schedule(1.0, 0, 2).at(step) for step in range(2)] == [1.0, 0.5]


def test_a_pass_has_every_example_once_and_little_padding() -> None:
    examples = [([0] * (row % 40), [0]) for row in range(100)]
    batches = batches_of(examples, 8, 0, "seed")
    assert sorted(row for batch in batches for row in batch) == list(range(100))
    assert max(map(len, batches)) == 8
    padding = 0
    for batch in batches:
        lengths = [len(examples[row][0]) for row in batch]
        padding += sum(max(lengths) - length for length in lengths)
    assert padding < 300  # 1,700 in random order
    assert batches == batches_of(examples, 8, 0, "seed") != batches_of(examples, 8, 1, "seed")


# ---- the end, and resuming ----


def test_when_it_is_over() -> None:
    assert best_of([3.0, 2.0, 2.0, 2.5]) == 1
    assert [is_over(losses, 2) for losses in ([], [3.0], [3.0, 3.5], [3.0, 3.5, 3.2], [3.0, 3.5, 2.9])] == [
        False,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.slow
def test_it_ends_early_and_keeps_the_best(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three values a measurement: forward, inverse, both. Only the last decides."""
    falls_once = iter([9.0, 9.0, 3.0, 9.0, 9.0, 2.0] + [9.0, 9.0, 4.0] * 5)
    monkeypatch.setattr(supervised, "loss_of", lambda policy, examples: next(falls_once))
    folder = run(pocket, tmp_path, "a", "--cycles", "5", "--patience", "2")
    printed = capsys.readouterr().out
    assert "cycle 3: ends here: no lower validation loss for 2 cycles" in printed
    assert "kept: cycle 1 of 3, by the validation loss" in printed
    results = results_of(folder)
    assert (len(results["cycles"]), results["stopped"], results["kept"]) == (3, 3, 1)
    assert (folder / "checkpoints" / "cycle-0001").is_dir()
    assert read_run(folder).finished
    assert is_finished(folder, 5)
    (folder / "self_improvement_results.json").unlink()  # as if it was killed before the last file
    assert run_command(Config, main, ["--resume", str(folder)], "sft") == 0
    assert results_of(folder) == results
    capsys.readouterr()
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "9"], "sft") == 0
    assert "ended early in cycle 3: start a new run with a larger --patience" in capsys.readouterr().out


@pytest.mark.slow
def test_an_extended_run_takes_up_the_longer_schedule_and_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "a")
    assert run_command(Config, main, ["--resume", str(folder)], "sft") == 0
    assert "learning rate" not in capsys.readouterr().out
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "4"], "sft") == 0
    said = capsys.readouterr().out
    steps = 3  # of 16 examples in a cycle, of 44
    schedule = Schedule(0.01, 1, 4 * steps)
    assert f"goes on to 4 cycles instead of 2: the learning rate jumps from 0 to {schedule.at(6):.2g}" in said
    rates = curve(folder, "train/lr")
    assert rates[:2] == curve(finished, "train/lr")
    assert rates[2:] == [schedule.at(8), schedule.at(11)]
    assert rates[2] > rates[1]
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "4"], "sft") == 0
    assert "learning rate" not in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(pocket: Path, tmp_path: Path) -> None:
    whole = run(pocket, tmp_path / "whole", "a", "--cycles", "3")
    killed = tmp_path / "killed" / "a"
    argv = ["--model", str(pocket), *FEW, "--cycles", "3", "--output", str(killed.parent), "--name", "a"]
    kill_after_the_first_of_three("sft", argv, tmp_path)
    assert not (killed / "self_improvement_results.json").exists()
    assert run_command(Config, main, ["--resume", str(killed)], "sft") == 0
    for name in ("metrics.jsonl", "rollouts.jsonl", "truth.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "labels.json"):
        last = Path("checkpoints") / "cycle-0003" / name
        assert (killed / last).read_bytes() == (whole / last).read_bytes()
    assert results_of(killed)["labels"] == results_of(whole)["labels"] == {"start": 0, "end": 24}


# ---- labels ----


def test_labels_are_counted_and_shown(
    finished: Path, pocket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results_of(finished)["labels"] == {"start": 0, "end": 24}
    assert read_labels(finished / "checkpoints" / "cycle-0002") == 24
    assert read_labels(finished / "checkpoints" / "cycle-0000") == 0
    [row] = make_report([read_run(finished)])["runs"]
    assert (row["labels"], row["labelled"]) == (24, True)
    config = Config(examples=24, domain="network")
    assert in_words(config, 22, 2) == (
        "labels: 24 pairs, the domain's own, from split pretrain; "
        "22 to train on, 2 held back, both directions"
    )
    policy = load_policy(str(pocket), adapter=str(finished / "checkpoints" / "cycle-0002"))
    assert policy.labels == 24


@pytest.mark.slow
def test_labels_travel_with_a_merged_model_and_with_an_adapter(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """sft -> one model -> rejection_sft, or sft again: the count stays, the new base is the trained model."""
    merged = tmp_path / "warm"
    words = [str(finished), "--merge", "--output", str(merged)]
    assert run_command(export.Config, export.main, words, "export") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(merged)
    assert read_labels(merged) == 24
    assert "labelled (24)" in (merged / "README.md").read_text()

    adapter = finished / "checkpoints" / "cycle-0002"
    trained = load_policy(str(read_run(finished).settings["model"]), adapter=str(adapter))
    base = load_policy(str(merged))
    prompts, texts = ["list files", "x"], ["ls -a", "ping"]
    for own, other in zip(trained.logprobs(prompts, texts), base.logprobs(prompts, texts), strict=True):
        assert own == pytest.approx(other, abs=1e-3)
    assert base.tokens.eos == trained.tokens.eos
    with trained.adapter("off"):
        assert trained.logprobs(prompts, texts)[0] != pytest.approx(base.logprobs(prompts, texts)[0], abs=0.1)

    argv = ["--model", str(merged), "--output", str(tmp_path), "--name", "next", "--cycles", "1", *SMALL]
    argv += ["--reward", "random", "--lr", "0.01"]
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0
    assert "labels used: 24 (24 at its start)" in capsys.readouterr().out
    last = tmp_path / "next" / "checkpoints" / "cycle-0001"
    assert results_of(tmp_path / "next")["labels"] == {"start": 24, "end": 24}
    assert not results_of(tmp_path / "next")["labelled"]
    assert read_labels(last) == load_policy(str(merged), adapter=str(last)).labels == 24

    longer = run(merged, tmp_path, "longer", "--cycles", "1")
    assert results_of(longer)["labels"] == {"start": 24, "end": 48}
    assert "labels used: 48 (24 at its start)" in capsys.readouterr().out


def test_the_card_of_a_merged_model_has_labels_accuracy_and_no_path_of_this_machine(finished: Path) -> None:
    results = results_of(finished)
    text = card(read_run(finished))
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata) == {"library_name": "transformers", "tags": ["inversion", "sft"]}
    assert "- **Learnt from**: labelled (24)." in body
    before, after = (results["eval"][when]["eval/greedy"] for when in ("start", "end"))
    assert f"| greedy | {before:.3f} | {after:.3f} |" in body
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings["examples"] == 24 and settings["model"] == Path(results["config"]["model"]).name
    assert str(finished.parent) not in text and str(Path.home()) not in text


def test_a_card_shows_no_folder_of_a_reward_model_or_a_domain(finished: Path) -> None:
    record = read_run(finished)
    settings = {**record.settings, "reward": "rm:/home/me/rm", "domain": "shell,/home/me/mine.yaml"}
    text = card(replace(record, settings=settings))
    assert "the domain `shell,mine.yaml` and the reward `rm:rm`" in text
    assert "/home/me" not in text


@pytest.mark.slow
def test_the_reward_truth_counts_the_tasks_it_judges(pocket: Path, tmp_path: Path) -> None:
    argv = ["--model", str(pocket), "--output", str(tmp_path), "--name", "a", "--cycles", "2", *SMALL]
    argv += ["--reward", "truth", "--select", "quantile", "--keep-share", "1"]
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0
    assert results_of(tmp_path / "a")["labels"] == {"start": 0, "end": 4}
    watched = run(pocket, tmp_path, "b", "--cycles", "1", "--reward", "truth")
    assert results_of(watched)["labels"] == {"start": 0, "end": 24}  # what is only watched is no label


def test_a_count_that_cannot_be_read(tmp_path: Path) -> None:
    assert read_labels(tmp_path / "none", default=3) == read_labels(tmp_path, default=3) == 3
    write_labels(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    write_labels(tmp_path, 5)
    assert read_labels(tmp_path, default=3) == 5
    for text in ('{"labels": -1}', '{"labels": true}', "[]", "{", '{"count": 1}'):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(InputError, match=r"labels.json: .*: restore it or remove it"):
            read_labels(tmp_path)


def test_a_run_that_cannot_be_merged(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused_merge(*words: str) -> str:
        assert run_command(export.Config, export.main, [*words, "--merge"], "export") == 2
        return capsys.readouterr().err.removeprefix("error: ").strip()

    copy = Path(shutil.copytree(finished, tmp_path / "b"))
    assert (
        refused_merge(str(finished), str(copy))
        == "--merge: takes one run: give the others in calls of their own"
    )
    assert "is there already: choose another folder" in refused_merge(str(finished), "--output", str(copy))
    for name in ("progress.json", "self_improvement_results.json"):
        results = json.loads((copy / name).read_text())
        del results["eval"]["end"]
        (copy / name).write_text(json.dumps(results))
    assert refused_merge(str(copy)) == f"{copy}: has not ended: finish it with --resume, then merge it"


# ---- the pairs ----


def test_the_domains_own_pairs_are_of_a_split_that_nothing_else_uses() -> None:
    pairs = draw_pairs([NETWORK, SQL], 30, 0, reference)
    assert len({pair.task.text for pair in pairs}) == 30
    assert {pair.task.id.split("/")[0] for pair in pairs} == {"pretrain"}
    assert [pair.task.domain for pair in pairs].count("sql") == 15
    for task, command in pairs:
        assert NETWORK.split_of(task.text) == "pretrain"
        assert command == reference(task)
    assert (
        pairs == draw_pairs([NETWORK, SQL], 30, 0, reference) != draw_pairs([NETWORK, SQL], 30, 1, reference)
    )


def test_more_examples_than_a_domain_has() -> None:
    """Two sentences are in the split: more pairs would repeat them, and repeated labels are not counted."""

    class TwoSentences:
        name, where = "two", "two"

        def tasks(self, split: str, count: int, *stream_parts: object) -> list[Task]:
            return [Task(f"{split}/x/{row}", "two", f"task {row % 2}") for row in range(count)]

    pairs = draw_pairs([TwoSentences()], 50, 0, lambda task: "ls")  # type: ignore[list-item]
    assert {pair.task.text for pair in pairs} == {"task 0", "task 1"} and len(pairs) == 2
    assert "labels: 2 pairs (50 asked: more tasks would repeat sentences)" in in_words(
        Config(examples=50), 1, 1
    )


def test_what_is_held_back() -> None:
    pairs = [Pair(Task(str(row), "network", f"task {row}"), "ls") for row in range(20)]
    training, validation = held_back(pairs, 0.1, 0)
    assert (len(training), len(validation)) == (18, 2)
    assert set(training) | set(validation) == set(pairs)
    assert held_back(pairs, 0.1, 0) == (training, validation) != held_back(pairs, 0.1, 1)
    assert held_back(pairs, 0.0, 0)[1] == []
    assert [len(part) for part in held_back(pairs[:2], 0.01, 0)] == [1, 1]
    assert [len(part) for part in held_back(pairs[:2], 0.99, 0)] == [1, 1]


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_of_a_file(tmp_path: Path) -> None:
    held_out = NETWORK.tasks("heldout", 1, 0)[0].text
    rows = [
        {"task": "ping  db.test", "command": " ping db.test "},
        {"task": "ping db.test", "command": "ping db.test", "domain": "network"},
        {"task": "ping web1.test", "command": "ping web1.test"},
        {"task": held_out.upper() + ".", "command": "ls"},
    ]
    pairs = read_pairs(write(tmp_path / "p.jsonl", rows), [NETWORK], [held_out])
    assert [tuple(pair) for pair in pairs] == [
        (Task("p.jsonl/1", "network", "ping db.test"), "ping db.test"),
        (Task("p.jsonl/3", "network", "ping web1.test"), "ping web1.test"),
    ]
    assert set(some_of(pairs, None, 0)) == set(pairs)
    assert len(some_of(pairs, 1, 0)) == 1


FIX = 'write {"task": "...", "command": "..."} on one line'


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"task": "x"}, f"command: is missing or not a text: {FIX}"),
        ({"task": 3, "command": "ls"}, f"task: is missing or not a text: {FIX}"),
        ({"task": "x", "command": " "}, f"command: is missing or not a text: {FIX}"),
        ({"task": "x", "command": "ls\npwd"}, "command: has several lines: write it on one"),
        (
            {"task": "x", "command": "ls", "domain": "shel"},
            "domain: 'shel' is not one of --domain: did you mean shell?",
        ),
        (["x"], f"not a JSON object: {FIX}"),
    ],
)
def test_a_faulty_line_is_named_before_a_model_loads(
    row: object,
    error: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loads(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(session_module, "load_policy", loads)
    path = write(tmp_path / "p.jsonl", [{"task": "y", "command": "ls", "domain": "shell"}, row])
    found = refused(
        capsys, "--domain", "network,shell", "--pairs", str(path), "--output", str(tmp_path / "runs")
    )
    assert found == f"{path}:2: {error}"
    assert not (tmp_path / "runs").exists()


def test_other_input_that_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = tmp_path / "none.jsonl"
    assert (
        refused(capsys, "--pairs", str(none))
        == f"--pairs {none}: no such file: give the path of a JSONL file"
    )
    rows = [{"task": "ping db.test", "command": "ping db.test"}]
    path = write(tmp_path / "p.jsonl", rows)
    one = "has 1 different pairs without tasks of the evaluation"
    assert refused(capsys, "--pairs", str(path)) == f"--pairs {path}: {one}: give 2 or more"
    write(path, [*rows, {"task": "ping a.test", "command": "ping a.test"}])
    fix = "ask for at most that many, or leave it out"
    assert (
        refused(capsys, "--pairs", str(path), "--examples", "3")
        == f"--examples 3: --pairs {one.replace('1', '2')}: {fix}"
    )
    assert refused(capsys, "--examples", "1") == "--examples 1: must be 2 or more"
    assert refused(capsys, "--validation", "1") == "--validation 1.0: must be in [0, 1): 0.1 is the default"
    assert refused(capsys, "--patience", "0") == "--patience 0: must be 1 or more"
