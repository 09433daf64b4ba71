"""Which models are loaded, and what is said about those that are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging

from agents.policy import load, lora
from agents.policy.load import load_policy
from envs.types import InputError


def refused(name: str | Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_policy(str(name), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(pocket: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pocket, tmp_path / "model"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what_to_give = load.ALLOWED
    for name in (tmp_path / "none", "./none", "~/none", "a b//c?"):
        assert refused(name) == f"--model {name}: there is no such folder: {what_to_give}"
    assert refused(tmp_path) == f"--model {tmp_path}: has no config.json: give the folder of a model"
    monkeypatch.setattr(load, "EMBEDDED", {"embedded": tmp_path})
    assert "python -m agents.pretrain --output embedded" in refused("embedded")


def test_a_hub_out_of_reach_is_one_line() -> None:
    for name in ("mistral-7b", "some/model", "none"):
        said = refused(name)
        out_of_reach = "it is no folder, and the Hugging Face hub cannot be reached"
        assert said.startswith(f"--model {name}: cannot be loaded: {out_of_reach}")
        assert "HF_HUB_OFFLINE" in said  # why: no test may need the network


def test_smollm2_is_the_one_in_the_cache_else_the_hubs(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = refused("smollm2")
    folder = tmp_path / "cache" / "inversion" / "smollm2"
    assert said.startswith("--model smollm2: cannot be loaded: ")
    assert said.endswith(f": make smollm2 (python -m agents.fetch) puts it into {folder}, without a hub")
    shutil.copytree(copy, folder)
    assert load_policy("smollm2").adapter_hash() == load_policy(str(copy)).adapter_hash()


def test_a_tilde_is_the_home_folder(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_policy(str(copy)).save(tmp_path / "adapter")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    at_home = load_policy("~/model", adapter="~/adapter")
    assert at_home.adapter_hash() == load_policy(str(copy), adapter=str(tmp_path / "adapter")).adapter_hash()


@pytest.mark.parametrize("where", ["loading", "adding the adapter"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_not_a_wrong_name(
    copy: Path, error: Exception, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    if where == "loading":
        monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", fail)
    else:
        monkeypatch.setattr(lora, "get_peft_model", fail)
    message = refused(copy)
    assert message.startswith(f"--model {copy}: too large for the memory of this machine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "too large for the GPU's free memory: use --load-in-4bit" in load._no_memory(False)
    assert "--load-in-4bit" not in load._no_memory(True)


def test_other_errors_while_the_adapter_is_added_pass(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(lora, "get_peft_model", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        load_policy(str(copy))


def test_downloads_show_progress_and_reading_from_disk_does_not(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    logging.enable_progress_bar()
    load_policy(str(copy))
    assert not are_progress_bars_disabled()
    assert "Loading weights" not in capsys.readouterr().err
    disable_progress_bars()  # by a user's own code
    load_policy(str(copy))
    assert are_progress_bars_disabled()
    enable_progress_bars()


def test_numbers_and_threads_are_as_asked(copy: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        policy = load_policy(str(copy))
        assert torch.get_num_threads() == (2 if torch.cuda.is_available() else 1)
        if not torch.cuda.is_available():
            assert (str(policy.compute), policy.model.dtype) == ("float32, 1 thread", torch.float32)
        short = load_policy(str(copy), dtype="bfloat16", threads=2)
        assert torch.get_num_threads() == 2
        assert (str(short.compute), short.model.dtype) == ("bfloat16, 2 threads", torch.bfloat16)
        assert {parameter.dtype for parameter in short.trainable()} == {torch.float32}
    finally:
        torch.set_num_threads(before)


def test_pickles_are_refused(copy: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.save(AutoModelForCausalLM.from_pretrained(copy).state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "model.safetensors" in refused(copy)


def test_damaged_files_get_one_line(copy: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2])
        problem = f"cannot read {name}: " if name == "config.json" else "cannot be loaded: "
        assert refused(copy).startswith(f"--model {copy}: {problem}")
        (copy / name).write_bytes(whole)
    load_policy(str(copy))


def test_incomplete_weights_are_refused(copy: Path) -> None:
    whole = (copy / "config.json").read_text()
    edit(copy / "config.json", num_hidden_layers=2, layer_types=None)
    assert "9 of its weights are missing, such as model.layers.1." in refused(copy)
    (copy / "config.json").write_text(whole)
    edit(copy / "config.json", hidden_size=64)
    assert "cannot be loaded" in refused(copy)


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_repository_is_neither_run_nor_asked_about(
    copy: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*arguments: Any) -> str:
        raise AssertionError("it asked")

    monkeypatch.setattr("builtins.input", asked)
    (copy / "evil.py").write_text(f"open({str(copy / 'run')!r}, 'w')\n")
    edit(
        copy / where,
        auto_map={
            "AutoConfig": "evil.C",
            "AutoModelForCausalLM": "evil.M",
            "AutoTokenizer": ["evil.T", "evil.T"],
        },
    )
    if where == "config.json":
        edit(copy / where, model_type="evil")
        assert "custom code" in refused(copy)
    else:
        edit(copy / where, tokenizer_class="EvilTokenizer")
        load_policy(str(copy))
    assert not (copy / "run").exists()


def test_a_tokenizer_without_an_end_is_refused(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", eos_token=None)
    assert "no end-of-sequence token" in refused(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_four_bits_need_cuda(pocket: Path) -> None:
    assert refused(pocket, load_in_4bit=True).startswith(
        "--load-in-4bit: needs a CUDA device and bitsandbytes"
    )
