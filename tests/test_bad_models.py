"""Models and adapters that no command can use: one line, exit status 2, and no folder is left."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

from agents import grpo, play, rejection_sft
from agents.cli.command import run_command
from agents.policy.load import load_policy
from envs.types import InputError

SMALL = (
    "--domain network --force --no-gates --reward random --cycles 1 --tasks 2 --candidates 2 --eval-tasks 2"
)


@pytest.fixture
def copy(brief: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(brief, tmp_path / "model"))


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What a trainer says that cannot start; nothing is left where it would have written."""

    def start(*flags: str, agent: Any = rejection_sft, argv: str = SMALL) -> str:
        there = tmp_path / "there"
        there.mkdir(exist_ok=True)
        monkeypatch.chdir(there)
        capsys.readouterr()
        name = agent.__name__.rpartition(".")[2]
        assert run_command(agent.Config, agent.main, [*argv.split(), *flags], name) == 2
        assert list(there.iterdir()) == []
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error.removeprefix("error: ").removesuffix("\n")

    return start


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def spoil(path: Path) -> str:
    """Makes one number of a file of weights NaN -> the tensor's name."""
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def test_weights_that_are_no_numbers(copy: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    load_policy(str(copy)).save(tmp_path / "adapter")
    name = spoil(tmp_path / "adapter" / "adapter_model.safetensors")
    said = refused("--model", str(copy), "--adapter", str(tmp_path / "adapter"), "--max-new-tokens", "12")
    why = f"adapter_model.safetensors holds NaN or infinity, in {name}"
    assert said == f"--adapter {tmp_path / 'adapter'}: {why}: give another adapter"
    name = spoil(copy / "model.safetensors")
    said = refused("--model", str(copy))
    why = f"its weights hold NaN or infinity, in {name}"
    assert said == f"--model {copy}: {why}: give an undamaged copy of it"


def test_an_adapter_of_another_base_or_kind(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    load_policy(str(copy)).save(folder)
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    with pytest.raises(InputError, match=f"was trained on {copy}, not on {other}: give that as --model"):
        load_policy(str(other), adapter=str(folder))
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copytree(copy, moved / "model")
    load_policy(str(moved / "model"), adapter=str(folder))
    edit(folder / "adapter_config.json", peft_type="IA3")
    with pytest.raises(InputError, match="is of the kind 'IA3': give a LoRA adapter"):
        load_policy(str(copy), adapter=str(folder))


def test_a_model_that_reads_ahead(copy: Path, refused: Callable[..., str]) -> None:
    """Its files may not say what it is."""
    size = len(AutoTokenizer.from_pretrained(copy))
    config = BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    BertLMHeadModel(config).save_pretrained(copy)
    edit(copy / "config.json", architectures=["BertForMaskedLM"])
    assert "is a BertForMaskedLM, which does not write text token by token" in refused("--model", str(copy))
    edit(copy / "config.json", architectures=None)
    said = refused("--model", str(copy))
    assert said.startswith(f"--model {copy}: what it says of a token depends on the text after it: ")


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages[9].content }}", "{% for", "{{ nothing.at.all }}", "hello"]
)
def test_a_broken_chat_template(copy: Path, template: str, refused: Callable[..., str]) -> None:
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    edit(copy / "tokenizer_config.json", chat_template=template)
    assert refused("--model", str(copy)).startswith("--model: its chat template ")


def test_more_tokens_than_the_model_has_positions(copy: Path, refused: Callable[..., str]) -> None:
    said = refused("--model", str(copy), "--max-new-tokens", "4000")
    assert "an answer of 4,000 in the model's 512 positions: ask for 4" in said
    edit(copy / "config.json", max_position_embeddings=8)
    said = refused("--model", str(copy), "--max-new-tokens", "4")
    assert said.endswith("positions: shorten the task, give fewer --shots, or give another --model")
    assert "no room" in refused("--model", str(copy), "--task", "list files", agent=play, argv="")


def test_bytes_that_are_no_text_are_refused_by_play(
    copy: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"list \xff files\n"), encoding="utf-8"))
    said = refused("--model", str(copy), agent=play, argv="")
    assert said == "standard input:1: not UTF-8 (byte 0xff): type or pipe it as UTF-8"


def test_a_state_space_model_learns(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import MambaConfig

    size = len(AutoTokenizer.from_pretrained(copy))
    config = MambaConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(copy)
    monkeypatch.chdir(tmp_path)
    argv = [*SMALL.split(), "--model", str(copy), "--max-new-tokens", "4", "--lr", "0.01"]
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0


@pytest.mark.slow
def test_what_trl_refuses_only_once_it_is_made(copy: Path, refused: Callable[..., str]) -> None:
    fused = ["use_liger_kernel=true", "liger_kernel_config={fused_linear_cross_entropy: true}"]
    said = refused("--model", str(copy), "--max-new-tokens", "8", "--trl", *fused, agent=grpo)
    assert said.startswith("--trl: TRL says: ")
