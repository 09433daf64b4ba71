"""The command line: layers, one-line errors, resuming, and a help that does not wait for torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import SafetensorError

from agents import evaluate, ppo, study
from agents.cli.command import parse, run_command
from agents.cli.faults import Terminated
from agents.cli.values import CONFIGS
from agents.study import TRAINERS
from agents.training.config import TrainConfig
from envs.types import InputError

ROOT = Path(__file__).resolve().parent.parent
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


@dataclass(frozen=True)
class Config(TrainConfig):
    """A trainer for the tests."""

    keep: str = "last"
    """Which checkpoint to keep."""


@dataclass(frozen=True)
class Small:
    """A command without a model."""

    port: int = 1
    """A number."""
    arms: tuple[str, ...] = ("a",)
    """Names."""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def ok(*argv: str) -> Config:
    return parse(Config, argv, "sft")[0]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr that a wrong command line gets."""

    def main(config: Config) -> int:
        raise AssertionError("main must not run")

    assert run_command(Config, main, argv, "sft") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err.removeprefix("error: ").rstrip("\n")


# Layers


def test_the_documented_defaults_hold() -> None:
    config = TrainConfig()
    assert (config.cycles, config.tasks, config.candidates, config.temperature) == (10, 50, 3, 0.7)
    assert (config.lr, config.batch_size, config.epochs) == (2e-4, 4, 1)
    assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
    config.check()


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    assert (ok().lr, ok().max_new_tokens, ok().model) == (1e-3, 48, "embedded")
    file.write_text("lr: 5e-4\nmax_new_tokens: 40\ntasks: 7\n")
    config = ok("--config", "my.yaml", "--max-new-tokens", "32")
    assert (config.lr, config.max_new_tokens, config.tasks, config.batch_size) == (5e-4, 32, 7, 4)
    # A flag given at the dataclass's default is still given.
    assert ok("--lr", "2e-4").lr == 2e-4
    file.write_text("model: gpt2\n")
    assert (ok("--config", "my.yaml").model, ok("--config", "my.yaml").lr) == ("gpt2", 2e-4)
    assert ok("--config", "my.yaml", "--model", "embedded").lr == 1e-3


def test_forms_of_flags() -> None:
    assert ok("--cycles=3").cycles == 3
    assert (
        ok("--batch_size", "5").batch_size
        == ok("--batch-size", "5").batch_size
        == ok("--batch_size=5").batch_size
        == 5
    )
    assert ok("--load-in-4bit").load_in_4bit and not ok("--load-in-4bit", "--no-load-in-4bit").load_in_4bit
    assert ok("--name", "None").name is None and ok("--name=-x").name == "-x"
    assert parse(Small, ["--arms", "a", "b", "--port", "2"]) == (Small(2, ("a", "b")), "")


def test_output_is_derived_from_the_agent() -> None:
    assert ok().output == "runs/sft" and ok("--output", "elsewhere").output == "elsewhere"


@pytest.mark.parametrize("name", ["embedded.yaml", "mistral-7b.yaml"])
def test_model_files_hold_known_keys_of_the_right_type(name: str) -> None:
    values = yaml.safe_load((CONFIGS / name).read_text())
    defaults = asdict(TrainConfig())
    assert set(values) <= set(defaults)
    assert all(
        defaults[key] is None or isinstance(value, type(defaults[key])) for key, value in values.items()
    )


def test_a_model_of_pretraining_has_the_defaults_of_the_embedded_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    other = parse(TrainConfig, ["--model", str(tmp_path)])[0]
    (tmp_path / "pretrain.json").write_text("{}")
    config, line = parse(TrainConfig, ["--model", str(tmp_path)])
    embedded = parse(TrainConfig, ["--model", "embedded"])[0]
    assert replace(config, model="embedded") == embedded != replace(other, model="embedded")
    assert "configs/embedded.yaml" in line and config.model == str(tmp_path)


def test_a_command_without_the_fields_of_a_model_file_ignores_them() -> None:
    @dataclass(frozen=True)
    class Evaluate:
        """No learning rate here."""

        model: str | None = None
        """The model."""

    assert parse(Evaluate, ["--model", "mistral-7b"])[0] == Evaluate(MISTRAL)


# The model


def test_the_model_line() -> None:
    def line(*argv: str) -> str:
        return parse(Config, argv, "sft")[1]

    assert line() == "model: embedded, the default; defaults from configs/embedded.yaml"
    assert line("--model", "gpt2") == "model: gpt2, as --model says; no defaults of its own"
    Path("my.yaml").write_text("seed: 1\nmodel: mistral-7b\n")
    assert (
        line("--config", "my.yaml")
        == f"model: {MISTRAL}, as my.yaml:2 says; defaults from configs/mistral-7b.yaml"
    )


@pytest.mark.parametrize("name", ["mistral-7b", MISTRAL])
def test_both_names_of_mistral(name: str) -> None:
    config = ok("--model", name)
    assert (config.model, config.load_in_4bit, config.lr) == (MISTRAL, True, 2e-4)
    assert not ok("--model", name, "--no-load-in-4bit").load_in_4bit


def test_the_default_model_is_the_same_on_every_machine_and_torch_is_not_asked() -> None:
    code = (
        "import sys; from agents.cli.command import parse; from agents.rejection_sft import Config\n"
        "config, line = parse(Config, [], 'rejection_sft')\n"
        "assert config.model == 'embedded' and config.lr == 1e-3, config\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (process.returncode, process.stderr) == (0, "")


# Errors


def test_a_file_of_nothing_but_comments_is_fine() -> None:
    Path("my.yaml").write_text("# nothing yet\n")
    assert ok("--config", "my.yaml").lr == 1e-3


# Resuming


def saved(folder: str, age: int = 0, *argv: str) -> Path:
    """A run folder as a trainer would have made it, some seconds old."""
    path = Path(folder)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(asdict(ok(*argv)), sort_keys=False))
    moment = time.time() - age
    os.utime(path / "config.yaml", (moment, moment))
    return path


def test_resume_takes_the_saved_configuration() -> None:
    saved("runs/sft/a", 0, "--lr", "0.5", "--model", "gpt2", "--seed", "9")
    config, line = parse(Config, ["--resume", "runs/sft/a"], "sft")
    assert (config.lr, config.model, config.seed, config.resume) == (0.5, "gpt2", 9, "runs/sft/a")
    assert line == "model: gpt2, as in runs/sft/a/config.yaml"


def test_half_of_a_saved_configuration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    saved("runs/sft/a", 0, "--lr", "0.5")
    path = Path("runs/sft/a/config.yaml")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))
    said = refused(capsys, "--resume", "runs/sft/a")
    assert said.startswith("runs/sft/a/config.yaml: has no ")
    assert said.endswith("or it is of an older version (start a new run)")


def test_resume_alone_finds_the_run() -> None:
    saved("runs/sft/old", 20, "--seed", "1")
    saved("runs/sft/new", 10, "--seed", "2")
    saved("other/x", 0, "--seed", "3")
    Path("runs/sft/empty").mkdir()
    assert (ok("--resume").seed, ok("--resume", "--cycles", "20").cycles) == (2, 20)
    assert ok("--cycles=12", "--resume").resume == "runs/sft/new"
    assert ok("--resume", "--output", "other").seed == 3
    assert ok("--resume", "--output", "runs/sft", "--name", "old").seed == 1
    assert ok("--name", "old", "--resume").seed == 1


def test_resume_refuses_other_settings(capsys: pytest.CaptureFixture[str]) -> None:
    saved("runs/sft/a", 0, "--model", "mistral-7b")
    fix = "leave it out, or start a new run"
    assert refused(capsys, "--resume", "--lr", "0.5") == f"--lr 0.5: the run was started with 0.0002: {fix}"
    assert (
        refused(capsys, "--resume", "--adapter", "x") == f"--adapter x: the run was started with null: {fix}"
    )
    assert (
        refused(capsys, "--resume", "--model", "gpt2")
        == f"--model gpt2: the run was started with {MISTRAL}: {fix}"
    )
    message = "--name b: --resume goes on with runs/sft/a: leave --name out"
    assert refused(capsys, "--resume", "runs/sft/a", "--name", "b") == message
    message = "--resume runs/sft/b: no run is there (it has no config.yaml): did you mean runs/sft/a?"
    assert refused(capsys, "--resume", "runs/sft/b") == message
    # The same as it was is no difference.
    assert (
        ok(
            "--resume",
            "runs/sft/a",
            "--lr",
            "2e-4",
            "--model",
            "mistral-7b",
            "--name",
            "a",
            "--output",
            "runs/sft",
        ).lr
        == 2e-4
    )


def test_a_damaged_saved_configuration_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    (saved("runs/sft/a") / "config.yaml").write_text("lr: 0.1\ncycels: 3\n")
    assert (
        refused(capsys, "--resume") == "runs/sft/a/config.yaml:2: cycels: unknown key: did you mean cycles?"
    )


def test_a_run_of_another_trainer_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    path = saved("runs/sft/a", 0, "--seed", "9") / "config.yaml"
    path.write_text("agent: sft\n" + path.read_text())
    assert ok("--resume", "runs/sft/a").seed == 9
    path.write_text("agent: dpo\nmargin: 0.02\n")
    message = "--resume runs/sft/a: is a run of agents.dpo: resume it with that command"
    assert refused(capsys, "--resume") == message


# Running


def test_main_gets_the_configuration_and_gives_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    assert run_command(Config, lambda config: seen.append(config), ["--cycles", "3"], "sft") == 0
    assert seen[0].cycles == 3 and capsys.readouterr().out.startswith("model: embedded, the default")
    assert run_command(Small, lambda config: config.port, ["--port", "3"]) == 3
    assert capsys.readouterr().out == ""


def test_input_errors_of_main_are_one_line_and_bugs_are_loud(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(config: Config) -> int:
        raise InputError("a.yaml:3: no\n such domain")

    def bug(config: Config) -> int:
        raise KeyError("ours")

    assert run_command(Config, wrong, [], "sft") == 2
    assert capsys.readouterr().err == "error: a.yaml:3: no such domain\n"
    with pytest.raises(KeyError):
        run_command(Config, bug, [], "sft")


def stopped(stop: BaseException, note: str = "") -> Any:
    """A command that ends like this, with the note that a run leaves."""
    if note:
        stop.add_note(note)

    def main(config: Config) -> int:
        raise stop

    return main


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted: {}"),
        (Terminated(), 143, "terminated: {}"),
        (OSError(28, "No space left on device"), 1, "error: the disk is full: free some space, then {}"),
        (
            OSError(30, "Read-only file system", "runs/a/x"),
            1,
            "error: runs/a/x: the file system is read-only: make it writable, then {}",
        ),
        (MemoryError(), 1, "error: out of memory: free some, or choose a smaller model, then {}"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            1,
            "error: the disk is full: free some space, then {}",
        ),
    ],
)
def test_what_the_machine_does_is_a_line_that_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], stop: BaseException, code: int, said: str
) -> None:
    assert run_command(Config, stopped(stop), [], "sft") == code
    assert capsys.readouterr().err == said.format("start it again") + "\n"
    assert run_command(Config, stopped(stop, "go on with this"), [], "sft") == code
    assert capsys.readouterr().err == said.format("go on with this") + "\n"


@pytest.mark.parametrize(
    "bug",
    [OSError(9, "Bad file descriptor"), PermissionError(1, "Operation not permitted"), OSError("what?")],
)
def test_other_errors_of_the_system_are_bugs(bug: OSError) -> None:
    with pytest.raises(OSError):
        run_command(Config, stopped(bug), [], "sft")


def test_sigterm_ends_a_command_and_is_as_before_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned: list[bool] = []

    def main(config: Config) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not end the cleaning
            cleaned.append(True)

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run_command(Config, main, [], "sft") == 143
    assert cleaned == [True] and capsys.readouterr().err == "terminated: start it again\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# Help


def test_help_does_not_offer_none_where_it_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(ppo.Config, print, ["--help"], "ppo")
    ppo_help = capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(evaluate.Config, print, ["--help"], "evaluate")
    evaluate_help = capsys.readouterr().out
    assert "--model STR" in ppo_help and "(default: None)" not in ppo_help + evaluate_help
    assert "--kl-target {None}|FLOAT" in ppo_help  # None is a choice there: 6.0 is the default
    assert "--inverter {current,base,ema}" in evaluate_help and "[SUBJECTS ...]" in evaluate_help


def test_a_missing_word_is_called_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(study.Config, print, [], "study") == 2
    assert capsys.readouterr().err == "error: FILE is missing: YAML file of the study: see --help\n"


ASK_ALL_FOR_HELP = """
import contextlib, io, json, runpy, sys
import agents.training.run
heavy, said = {"torch", "transformers", "trl", "datasets", "scipy", "tensorboard"}, {}
for agent in sys.argv[1:]:
    sys.modules.pop(f"agents.{agent}", None)
    sys.argv, printed = [f"agents/{agent}.py", "--help"], io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            runpy.run_module(f"agents.{agent}", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code
    said[agent] = [code, sorted(heavy & set(sys.modules)), printed.getvalue()]
print(json.dumps(said))
"""


def test_help_imports_nothing_heavy() -> None:
    """Of every command, in one process: loading Python takes longer than all of them."""
    agents = sorted(path.stem for path in (ROOT / "agents").glob("[a-z]*.py"))
    command = [sys.executable, "-c", ASK_ALL_FOR_HELP, *agents]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert set(TRAINERS) < set(said) == set(agents)
    for agent, (code, heavy, printed) in said.items():
        assert (code, heavy) == (0, []), agent
        assert f"python -m agents.{agent}" in printed
    helps = {agent: printed for agent, (_, _, printed) in said.items()}
    for agent in TRAINERS:
        for field in fields(TrainConfig):
            assert f"--{field.name.replace('_', '-')}" in helps[agent]
    assert "--reference {cycle,base}" in helps["dpo"]
    assert "--gae-lambda" in helps["ppo"]
    for flag in ("--beta", "--clip", "--micro-batch", "--trl"):
        assert flag in helps["grpo"] and flag in helps["rloo"]


def test_output_that_nobody_reads_is_no_traceback() -> None:
    words = [sys.executable, "-m", "agents.rejection_sft", "--help"]
    with subprocess.Popen(
        words, cwd=CONFIGS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
