"""The reward model: its loss and scores by hand, what a run of it counts, and its use as a reward."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import stir
from safetensors.torch import load_file, save_file
from scripted import FOREIGN, OTHER, RIGHT, SWAPPED, TASK

from agents import rejection_sft
from agents.cli.command import run_command
from agents.policy.footprint import shape_of
from agents.policy.labels import learnt_from, read_labels
from agents.policy.load import load_policy
from agents.policy.lora import Lora
from agents.policy.reward_model import RewardModel, load_reward_model
from agents.reward_model import Config, agreement, main, preference_loss, train_on_preferences
from agents.studies.runs import read_run
from agents.training.plan import planned, reward_model_bytes
from agents.training.preferences import Preference, by_chance, by_score, pairs_to_compare, read_preferences
from agents.training.results import labels_used
from agents.training.reward_learner import Learner
from agents.training.rollouts import Batch, Rollout
from envs.domain import load_domain
from envs.prompts import forward_prompt
from envs.types import Completion, InputError, Score, Task
from rewards.learnt import CARD, Learnt, folder_of
from rewards.registry import reward_info, shown

SMALL = ["--domain", "network", "--force", "--no-gates", "--max-new-tokens", "12", "--tasks", "6"]
SMALL += ["--cycles", "2", "--eval-tasks", "3", "--eval-subset", "2", "--eval-samples", "2"]
LINE = {"prompt": TASK.text, "chosen": RIGHT, "rejected": SWAPPED}


class Shorter:
    """Labels of a person who likes short commands."""

    inverter: str | None = None

    def __call__(
        self, tasks_P: Sequence[Task], commands_P_G: Sequence[Sequence[str]], seed: int = 0
    ) -> list[list[Score]]:
        return [[Score(-float(len(command))) for command in commands] for commands in commands_P_G]


def run(model: Path, folder: Path, *flags: str) -> Path:
    argv = ["--model", str(model), *SMALL, "--output", str(folder.parent), "--name", folder.name, *flags]
    assert run_command(Config, main, argv, "reward_model") == 0
    return folder


def use(model: Path, folder: Path, *flags: str) -> int:
    """Rejection-sampling SFT -> its exit status."""
    argv = ["--model", str(model), *SMALL, "--output", str(folder.parent), "--name", folder.name, *flags]
    return run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft")


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "progress.json").read_text()))


def metrics(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.fixture(scope="module")
def labelled(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on labels. A test that changes it takes a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rewards.labelled.Truth", Shorter)
        return run(brief, tmp_path_factory.mktemp("rm") / "a", "--preferences", "truth", "--batch-size", "4")


@pytest.fixture(scope="module")
def judged(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on verdicts of another model."""
    return run(brief, tmp_path_factory.mktemp("rm") / "judged", "--judge", str(brief))


# The loss, and what it is about


def test_the_loss_by_hand() -> None:
    first, second = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.5, 0.0, 1.0])
    found = preference_loss(first, second, torch.tensor([1.0, 1.0, 0.75]))
    wanted = [
        math.log(1 + math.exp(-1.5)),
        math.log(2),
        0.75 * math.log(1 + math.exp(2)) + 0.25 * math.log(1 + math.exp(-2)),
    ]
    assert found.tolist() == pytest.approx(wanted)


def test_agreement_by_hand() -> None:
    assert agreement([0.5, -0.1, 0.0, 2.0]) == pytest.approx(2.5 / 4)


def test_a_score_is_the_head_on_the_state_of_the_last_token(policy: Any) -> None:
    model = RewardModel(policy, policy, seed=3)
    prompts = [forward_prompt(TASK), forward_prompt(OTHER)]
    sequences = model.sequences(prompts, [RIGHT, FOREIGN])
    [asked, _] = policy.prompt_ids(prompts)
    assert sequences[0] == [*asked, *policy.completion_ids([RIGHT])[0], *policy.end]
    wanted = []
    for ids in sequences:  # one at a time, so without padding
        with torch.no_grad():
            states = policy.model.get_base_model().model(input_ids=torch.tensor([ids])).last_hidden_state
        wanted.append(float((states[0, -1] @ model.head.weight[0]).detach()))
    assert len(set(map(len, sequences))) == 2 and wanted[0] != wanted[1]
    assert model.scores(sequences) == pytest.approx(wanted, abs=1e-5)
    model.center = 0.25
    assert model(prompts, [RIGHT, FOREIGN]) == pytest.approx([value - 0.25 for value in wanted], abs=1e-5)


def test_the_reward_is_the_probability_against_an_average_command() -> None:
    def scorer(prompts: Any, commands: Sequence[str]) -> list[float]:
        return [{RIGHT: math.log(3), SWAPPED: -800.0, FOREIGN: math.nan}[command] for command in commands]

    [[right, swapped, foreign, empty]] = Learnt(scorer)([TASK], [[RIGHT, SWAPPED, FOREIGN, " "]])  # type: ignore[arg-type]
    assert right.value == pytest.approx(0.75) and right.parts["learnt"] == pytest.approx(math.log(3))
    assert swapped.value == 0.0
    assert (foreign.value, foreign.reason) == (None, "not a number")
    assert empty.value is None


def rollout(command: str, cut: bool = False, task: Task = TASK) -> Rollout:
    return Rollout(task, Completion(command, (1,), (0.0,), cut), Score(None))


def test_all_pairs_of_different_commands_are_compared() -> None:
    batch = Batch(
        [
            [rollout("ls"), rollout("pwd"), rollout("ls"), rollout("id"), rollout("cut", cut=True)],
            [rollout("x"), rollout(""), rollout("x")],
        ]
    )
    wanted = [(TASK, "ls", "pwd"), (TASK, "ls", "id"), (TASK, "pwd", "id")]
    assert pairs_to_compare(batch) == wanted


def test_preferences_of_a_judge_and_of_scores() -> None:
    pairs = [(TASK, "a", "b"), (TASK, "c", "d"), (TASK, "e", "f")]
    assert by_chance(pairs, [0.7, 0.5, 0.1]) == [
        Preference(TASK, "a", "b", 0.7),
        Preference(TASK, "f", "e", 0.9),
    ]
    scores = [[Score(0.0), Score(1.0)], [Score(1.0), Score(1.0)], [Score(None), Score(1.0)]]
    assert by_score(pairs, scores) == [Preference(TASK, "b", "a", 1.0)]


def test_a_step_moves_the_scores_as_preferred(pocket: Path) -> None:
    config = Config(model=str(pocket), preferences="truth", lr=1e-2)
    policy = load_policy(str(pocket))
    learner = Learner(config, {})
    learner.begin("", policy)
    learner.resume(None)
    preferences = [Preference(TASK, RIGHT, SWAPPED), Preference(OTHER, FOREIGN, RIGHT)]
    before = learner.differences(preferences)
    found = train_on_preferences(learner, preferences, config, 0, 1, "t")
    wanted = math.fsum(math.log(1 + math.exp(-value)) for value in before) / 2
    assert found["train/loss"] == pytest.approx(wanted, abs=1e-5)
    after = learner.differences(preferences)
    assert all(now > then for now, then in zip(after, before, strict=True))


def test_where_memory_runs_out_half_as_many_pairs_are_learnt_at_a_time(
    pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(model=str(pocket), preferences="truth", batch_size=4)
    preferences = [Preference(TASK, f"nmap -p {port} web1.test", SWAPPED) for port in range(4)]
    whole = RewardModel.forward

    def learnt(room: int) -> tuple[float, int]:
        """The loss where so many sequences fit, and how many are taken from then on."""

        def limited(model: RewardModel, sequences: Sequence[Any]) -> torch.Tensor:
            if len(sequences) > room:
                raise torch.OutOfMemoryError
            return whole(model, sequences)

        monkeypatch.setattr(RewardModel, "forward", limited)
        policy = load_policy(str(pocket))
        learner = Learner(config, {})
        learner.begin("", policy)
        learner.resume(None)
        found = train_on_preferences(learner, preferences, config, 0, 1, "t")
        return float(found["train/loss"] or 0), policy.training.size

    (loss, _), (in_parts, size) = learnt(8), learnt(4)
    assert size == 4
    assert in_parts == pytest.approx(loss, abs=1e-6) and loss > 0


# A file of preferences


def test_a_file_of_preferences(tmp_path: Path) -> None:
    network, shell = load_domain("network"), load_domain("shell")
    path = tmp_path / "mine.jsonl"
    rows = [LINE, LINE, {**LINE, "prompt": "held out"}, {**LINE, "rejected": FOREIGN, "domain": "network"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_preferences(path, [network], ["Held out"], seed=0)
    assert sorted((one.task.text, one.first, one.second, one.chance) for one in found) == [
        (TASK.text, RIGHT, SWAPPED, 1.0),
        (TASK.text, RIGHT, FOREIGN, 1.0),
    ]
    with pytest.raises(InputError, match=r"mine.jsonl:1: domain: is missing"):
        read_preferences(path, [network, shell], [], seed=0)
    bad = {
        "prompt: is missing": {"chosen": "a", "rejected": "b"},
        "chosen: is missing": {"prompt": "a", "chosen": [], "rejected": "b"},
        "rejected: has several lines": {**LINE, "rejected": "a\nb"},
        "chosen and rejected are the same": {**LINE, "rejected": RIGHT},
    }
    for message, row in bad.items():
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError, match=message):
            read_preferences(path, [network], [], seed=0)
    with pytest.raises(InputError, match="no such file: give judge, truth, or the path"):
        read_preferences(tmp_path / "no.jsonl", [network], [], seed=0)


def test_a_run_learns_a_file_slice_by_slice(brief: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{**LINE, "chosen": f"nmap -p {port} web1.test"} for port in range(1, 10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run(brief, tmp_path / "a", "--preferences", str(path), "--cycles", "3", "--candidates", "1")
    assert metrics(folder, "train/pairs") == [6, 9, 9]  # six tasks a cycle; then the file is at its end
    assert len(metrics(folder, "preference/accuracy")) == 2
    assert learnt_from(results(folder)) == "labelled (9)"
    # What a run has learnt can be learnt again.
    again = read_preferences(folder / "preferences.jsonl", [load_domain("network")], [], seed=0)
    assert {one.first for one in again} == {row["chosen"] for row in rows}


# What a run counts and keeps


def test_labelled_preferences_are_counted_ties_included(labelled: Path) -> None:
    log = [json.loads(line) for line in (labelled / "rollouts.jsonl").read_text().splitlines()]
    groups: dict[tuple[int, str], set[str]] = {}
    for row in log:
        if row["command"] and not row["truncated"]:
            groups.setdefault((row["cycle"], row["task_id"]), set()).add(row["command"])
    pairs = sum(math.comb(len(commands), 2) for commands in groups.values())
    found = results(labelled)
    kept = (labelled / "preferences.jsonl").read_text().splitlines()
    assert found["usage"]["preferences"] == pairs >= len(kept) > 0
    assert learnt_from(found) == f"labelled ({pairs})"
    assert read_run(labelled).labels == pairs
    assert labels_used(found) == f"labels used: {pairs}"
    card = json.loads((folder_of(f"rm:{labelled}") / CARD).read_text())
    assert (card["labels"], card["preferences"]) == (pairs, "truth")
    assert reward_info(f"rm:{labelled}").labels == pairs
    assert read_labels(folder_of(f"rm:{labelled}")) == pairs  # for who takes it as --adapter
    assert shown(f"rm:{labelled}") == f"rm:{labelled} (labelled)"


def test_an_ai_judge_needs_no_label(judged: Path, brief: Path) -> None:
    found = results(judged)
    assert learnt_from(found) == "label-free"
    assert found["usage"]["judge_calls"] > 0 == found["usage"]["preferences"]
    assert set(found["usage"]["models"]) == {"rm:itself", str(brief)}
    assert not reward_info(f"rm:{judged}").from_labels
    for one in map(json.loads, (judged / "preferences.jsonl").read_text().splitlines()):
        assert 0.5 < one["chance"] < 1


def test_a_resumed_run_names_its_judge_as_before(
    brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(brief.parent)
    folder = run(brief, tmp_path / "a", "--judge", brief.name, "--cycles", "1")
    assert run_command(Config, main, ["--resume", str(folder), "--cycles", "2"], "reward_model") == 0
    assert set(results(folder)["usage"]["models"]) == {"rm:itself", str(brief)}
    cards = sorted(folder.glob(f"checkpoints/*/reward_model/{CARD}"))
    assert [json.loads(card.read_text())["judge"] for card in cards] == [str(brief)] * 2


def test_the_policy_does_not_change(labelled: Path) -> None:
    first, last = (
        load_file(labelled / f"checkpoints/cycle-000{cycle}/adapter_model.safetensors") for cycle in (1, 2)
    )
    assert all(bool((last[name] == tensor).all()) for name, tensor in first.items())


# Its use as a reward


def test_a_saved_model_scores_as_before(labelled: Path, brief: Path) -> None:
    policy = load_policy(str(brief))
    stir(policy)  # another policy than the one it was trained beside
    model = load_reward_model(f"rm:{labelled}", policy)
    assert not any(parameter.requires_grad for parameter in model.reader.model.parameters())
    log = [json.loads(line) for line in (labelled / "rollouts.jsonl").read_text().splitlines()]
    rows = [row for row in log if row["cycle"] == 2 and row["command"]]
    prompts = [forward_prompt(Task(row["task_id"], row["domain"], row["task"], row["tool"])) for row in rows]
    assert math.fsum(model(prompts, [row["command"] for row in rows])) == pytest.approx(0, abs=1e-3)
    assert policy.usage.tokens_scored > 0


def test_labels_travel_to_what_learns_from_it(labelled: Path, brief: Path, tmp_path: Path) -> None:
    assert use(brief, tmp_path / "b", "--reward", f"rm:{labelled}") == 0
    found = results(tmp_path / "b")
    count = results(labelled)["usage"]["preferences"]
    assert learnt_from(found) == f"labelled ({count})"
    assert found["labels"] == {"start": count, "end": count}  # nothing was executed for it
    [(name, parameters)] = found["usage"]["models"].items()
    assert name == f"rm:{labelled}" and parameters > 10_000
    assert metrics(tmp_path / "b", "reward/learnt")


def test_a_resumed_run_names_its_reward_model_as_before(
    labelled: Path, brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelled.parent)
    assert use(brief, tmp_path / "b", "--reward", f"rm:{labelled.name}", "--cycles", "1") == 0
    resume = ["--resume", str(tmp_path / "b"), "--cycles", "2"]
    assert run_command(rejection_sft.Config, rejection_sft.main, resume, "rejection_sft") == 0
    assert set(results(tmp_path / "b")["usage"]["models"]) == {f"rm:{labelled}"}


def test_the_plan_of_a_run_has_room_for_the_reward_model(labelled: Path, brief: Path) -> None:
    policy = load_policy(str(brief), dtype="float32")
    shape = shape_of(policy.model.config, Lora(), torch.float32, False)
    used = Config(model=str(brief), reward=f"rm:{labelled}")
    assert reward_model_bytes(used, shape) == shape.weight_bytes  # its base is the policy's
    assert reward_model_bytes(Config(model=str(brief)), shape) == shape.weight_bytes
    assert reward_model_bytes(Config(model=str(brief), reward="likelihood"), shape) == 0
    line = "of them for the weights of the reward model"
    assert line in planned(used, Lora(), {})


def test_a_changed_reward_model_is_not_resumed_with(
    labelled: Path, brief: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(labelled, tmp_path / "rm"))
    assert use(brief, tmp_path / "b", "--reward", f"rm:{copy}") == 0
    resume = ["--resume", str(tmp_path / "b"), "--cycles", "3"]
    shutil.rmtree(copy / "checkpoints" / "cycle-0002")  # so the model of the first cycle is taken
    capsys.readouterr()
    assert run_command(rejection_sft.Config, rejection_sft.main, resume, "rejection_sft") == 2
    assert capsys.readouterr().err == (
        f"error: --reward rm:{copy}: the reward model has changed since the run began: "
        "restore it, or start a new run\n"
    )


def damage_card(folder: Path) -> None:
    (folder / CARD).write_text("{")


def damage_weights(folder: Path) -> None:
    with (folder / "reward_head.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def resealed(folder: Path, name: str) -> None:
    import hashlib

    card = json.loads((folder / CARD).read_text())
    card["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / CARD).write_text(json.dumps(card))


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / "reward_head.safetensors")
    save_file({**tensors, "bias": tensors["bias"] * math.nan}, folder / "reward_head.safetensors")
    resealed(folder, "reward_head.safetensors")


def other_base(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "base": "embedded"}))


def without_base(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "base": "/no/such/model"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_card, "is damaged, "),
        (damage_weights, "is damaged, reward_head.safetensors does not match its sha256 sum"),
        (not_a_number, "reward_head.safetensors holds NaN or infinity"),
        (other_base, "was trained on "),
        (without_base, "its base model /no/such/model: there is no such folder"),
    ],
)
def test_a_faulty_reward_model_is_one_line(
    labelled: Path, brief: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    copy = Path(shutil.copytree(folder_of(f"rm:{labelled}"), tmp_path / "rm"))
    damage(copy)
    assert use(brief, tmp_path / "b", "--reward", f"rm:{copy}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --reward rm:{copy}: {message}") and error.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_evaluating_the_run_takes_its_own_model(labelled: Path, tmp_path: Path) -> None:
    from agents import evaluate

    argv = [str(labelled), "--tasks", "4", "--samples", "2", "--output", str(tmp_path / "e")]
    assert run_command(evaluate.Config, evaluate.main, argv, "evaluate") == 0
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert report["settings"]["reward"] == f"rm:{labelled}" and report["settings"]["labelled"]


@pytest.mark.slow
def test_a_trivial_preference_is_learnt_and_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that likes commands without a dash; then a policy that learns from what has learnt from it."""

    def no_dash(model: Any, pairs: Any, principles: Any, judge: str) -> list[float]:
        return [0.5 + 0.5 * (("-" in second) - ("-" in first)) for _, first, second in pairs]

    monkeypatch.setattr("agents.reward_model.judged", no_dash)
    common = ["--model", "embedded", "--domain", "shell", "--max-new-tokens", "32", "--no-gates"]
    common += ["--eval-tasks", "3", "--eval-subset", "2", "--eval-samples", "1", "--cycles", "3"]
    common += ["--tasks", "60", "--lr", "3e-3", "--output", str(tmp_path)]
    argv = [*common, "--epochs", "4", "--name", "rm"]
    assert run_command(Config, main, argv, "reward_model") == 0
    assert metrics(tmp_path / "rm", "preference/accuracy")[-1] > 0.9
    argv = [*common, "--epochs", "3", "--name", "b", "--reward", f"rm:{tmp_path / 'rm'}"]
    argv += ["--select", "quantile", "--keep-share", "0.3"]
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0
    log = [json.loads(line) for line in (tmp_path / "b" / "rollouts.jsonl").read_text().splitlines()]
    shares = []
    for cycle, phase in ((1, "before"), (3, "after")):
        rows = [row for row in log if (row["cycle"], row["phase"]) == (cycle, phase)]
        shares.append(sum("-" not in row["command"] for row in rows) / len(rows))
    assert shares[0] < 0.4
    assert shares[1] > 0.7


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    bad = [
        ["--reward", "likelihood"],
        ["--keep", "best"],
        ["--candidates", "1"],
        ["--preferences", "no.jsonl"],
        ["--preferences", ""],
        ["--judge", "embeded"],
        ["--judge", "embedded", "--preferences", "truth"],
        ["--constitution", "comands"],
    ]
    for flags in bad:
        assert run_command(Config, main, flags, "reward_model") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and flags[0] in error
