"""The adapter: off, averaged, copied, saved, loaded, and refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPTS, close, ids_of, stir, thoughts

from agents.policy.load import Lora, load_policy
from agents.policy.policy import Policy
from agents.policy.seeds import seeded
from agents.training.update import fine_tune
from envs.types import InputError


def train(policy: Policy) -> None:
    [prompt] = policy.prompt_ids(["list files"])
    example = (prompt, [*ids_of(policy, "ls"), policy.tokenizer.eos_token_id])
    fine_tune(policy, [example], lr=1e-3, batch_size=1, epochs=1, stream_parts=(0,))


def test_off_is_the_base_model(policy: Policy, pocket: Path) -> None:
    base, own = thoughts(load_policy(str(pocket), lora=Lora(r=2))), thoughts(policy)
    assert not close(own[0], base[0], 0.01)  # else nothing here is tested
    with policy.adapter("off"):
        assert close(thoughts(policy)[0], base[0])
        with policy.adapter("off"):
            assert close(thoughts(policy)[0], base[0])
        with policy.inverter("base"):
            assert close(thoughts(policy)[0], base[0])
        assert close(thoughts(policy)[0], base[0])
    with policy.adapter("on"), policy.inverter("current"):
        assert thoughts(policy) == own
    with pytest.raises(ZeroDivisionError), policy.inverter("base"):
        raise ZeroDivisionError
    assert thoughts(policy) == own
    with pytest.raises(InputError, match="use current, base or ema"):
        policy.inverter("average")


def test_the_average_of_the_adapter(policy: Policy, tmp_path: Path) -> None:
    first, own = policy.snapshot(), thoughts(policy)
    with policy.inverter("ema"):
        assert thoughts(policy) == own  # as long as none is kept
    policy.update_ema(0.5)
    stir(policy, 1)
    second, other = policy.snapshot(), thoughts(policy)
    with policy.inverter("ema"):
        assert thoughts(policy) == own
    assert thoughts(policy) == other
    policy.update_ema(0.5)
    assert policy.ema is not None
    assert all(
        torch.allclose(policy.ema[name], (first[name] + second[name]) / 2, atol=1e-6) for name in first
    )
    policy.save(tmp_path)
    kept, policy.ema = policy.ema, None
    policy.load(tmp_path)
    assert policy.ema is not None and all(torch.equal(policy.ema[name], kept[name]) for name in kept)
    (tmp_path / "ema.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"cannot read ema\.safetensors"):
        policy.load(tmp_path)
    (tmp_path / "ema.safetensors").unlink()
    policy.load(tmp_path)
    assert policy.ema is None


def test_off_holds_for_generation_too(policy: Policy, pocket: Path) -> None:
    base = load_policy(str(pocket)).generate(PROMPTS, temperature=0.0, max_new_tokens=8)
    with policy.inverter("base"):
        assert [row[0].text for row in policy.generate(PROMPTS, temperature=0.0, max_new_tokens=8)] == [
            row[0].text for row in base
        ]
    assert policy.generate(PROMPTS, temperature=0.0, max_new_tokens=8) != base


def test_snapshots(policy: Policy) -> None:
    first, own, name = policy.snapshot(), thoughts(policy), policy.adapter_hash()
    stir(policy, 1)
    second, other = policy.snapshot(), thoughts(policy)
    assert other != own and policy.adapter_hash() != name
    with policy.adapter(first):
        assert thoughts(policy) == own
        with policy.adapter(second):
            assert thoughts(policy) == other
            with policy.adapter("off"), policy.adapter(first):
                assert thoughts(policy) != own
        assert thoughts(policy) == own
    assert thoughts(policy) == other
    with pytest.raises(ZeroDivisionError), policy.adapter(first):
        raise ZeroDivisionError
    assert thoughts(policy) == other
    policy.restore(first)
    assert policy.adapter_hash() == name


def test_a_snapshot_is_a_copy(policy: Policy) -> None:
    before = policy.snapshot()
    kept = {key: tensor.clone() for key, tensor in before.items()}
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(1.0)
    policy.restore(before)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(1.0)
    assert before.keys() == kept.keys() and all(torch.equal(before[key], kept[key]) for key in kept)


def test_a_snapshot_of_another_adapter_is_refused(policy: Policy, pocket: Path) -> None:
    name = policy.adapter_hash()
    for wrong in (
        {},
        dict(list(policy.snapshot().items())[1:]),
        load_policy(str(pocket), lora=Lora(r=4)).snapshot(),
    ):
        with pytest.raises(ValueError, match="other layers or ranks"):
            policy.restore(wrong)
        with pytest.raises(ValueError, match="other layers or ranks"), policy.adapter(wrong):
            raise AssertionError
    assert policy.adapter_hash() == name


def test_snapshots_and_saving_do_not_ask_the_hub(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft.utils.save_and_load

    def fail(*arguments: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(peft.utils.save_and_load, "check_file_exists_on_hf_hub", fail)
    monkeypatch.setattr(policy.model.peft_config["default"], "base_model_name_or_path", "some/model")
    policy.restore(policy.snapshot())
    policy.adapter_hash()
    policy.save(tmp_path)


def test_save_and_load(policy: Policy, pocket: Path, tmp_path: Path) -> None:
    policy.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    fresh = load_policy(str(pocket), seed=5)
    assert fresh.adapter_hash() != policy.adapter_hash()
    fresh.load(tmp_path)
    for other in (fresh, load_policy(str(pocket), adapter=str(tmp_path), lora=Lora())):
        assert other.adapter_hash() == policy.adapter_hash() and thoughts(other) == thoughts(policy)
        assert len(other.trainable()) == len(policy.trainable()) == 8
        before = thoughts(other)
        train(other)
        assert other.adapter_hash() != policy.adapter_hash() and thoughts(other) != before
        other.restore(policy.snapshot())
        with other.adapter("off"), policy.adapter("off"):
            assert thoughts(other) == thoughts(policy)


def test_equal_adapters_are_saved_as_equal_bytes(pocket: Path, tmp_path: Path) -> None:
    """PEFT keeps the names of the layers as a set, whose order differs between processes."""
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for name, targets in (("a", layers), ("b", layers[::-1])):
        load_policy(str(pocket), lora=Lora(r=2, targets=targets)).save(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    saved = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(layers)


def test_the_shape_of_the_adapter_is_that_of_the_folder(pocket: Path, tmp_path: Path) -> None:
    policy = load_policy(str(pocket), lora=Lora(r=4, alpha=64, dropout=0.2, targets=("q_proj", "up_proj")))
    stir(policy)
    policy.save(tmp_path)
    other = load_policy(str(pocket), adapter=str(tmp_path))
    assert (
        thoughts(other) == thoughts(policy)
        and other.model.peft_config["default"].to_dict()["lora_dropout"] == 0.2
    )


def test_the_upper_layers_alone(tmp_path: Path) -> None:
    policy = load_policy("embedded", lora=Lora(r=2, layers="upper"))
    count = policy.model.config.num_hidden_layers
    adapted = {int(name.split("layers.")[1].split(".")[0]) for name in policy.snapshot()}
    assert count > 1 and adapted == set(range(count // 2, count))
    policy.save(tmp_path)
    assert load_policy("embedded", adapter=str(tmp_path)).adapter_hash() == policy.adapter_hash()


def test_wrong_adapters_get_one_line(policy: Policy, pocket: Path, tmp_path: Path) -> None:
    def refused(**options: Any) -> str:
        name = policy.adapter_hash()
        with pytest.raises(InputError) as caught:
            load_policy(str(pocket), adapter=str(tmp_path / "a"), **options)
        message = str(caught.value)
        assert (
            message.startswith(f"--adapter {tmp_path / 'a'}: ")
            and "\n" not in message
            and policy.adapter_hash() == name
        )
        return message

    assert "no adapter_model.safetensors there: give the folder of a PEFT adapter" in refused()
    policy.save(tmp_path / "a")
    load_policy(str(pocket), adapter=str(tmp_path / "a"), lora=Lora())
    assert "layers or ranks differ from those of --model" in refused(lora=Lora(r=8))
    assert "layers or ranks differ from those of --model" in refused(lora=Lora(targets=("q_proj",)))
    # The same weights with another scale are another adapter.
    assert "its lora_alpha is 32, not 16: use the --lora-alpha that" in refused(lora=Lora(alpha=16))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"not a tensor in sight")
    assert "cannot read adapter_model.safetensors" in refused()
    for damaged in ("[1, 2]", "{"):
        (tmp_path / "a" / "adapter_config.json").write_text(damaged)
        assert "cannot read adapter_config.json" in refused()
    (tmp_path / "a" / "adapter_config.json").unlink()
    assert "no adapter_config.json there" in refused(lora=Lora())
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors there" in refused(lora=Lora())


def test_the_first_weights_come_from_the_seed(pocket: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    hashes = [load_policy(str(pocket), seed=seed).adapter_hash() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2] and torch.equal(state, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_models_with_other_projections_get_lora_everywhere(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(plain)
    with seeded("test"):
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2)
        )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), lora=Lora(r=2))
    assert {
        name.split(".")[-1] for name in policy.model.peft_config["default"].to_dict()["target_modules"]
    } == {"c_attn", "c_fc", "c_proj"}
    before, name = thoughts(policy), policy.adapter_hash()
    train(policy)
    assert policy.adapter_hash() != name and thoughts(policy) != before
    with policy.adapter("off"):
        assert close(thoughts(policy)[0], before[0])
    alone, together = (
        policy.generate(prompts, temperature=0.0, max_new_tokens=4)[0][0].text
        for prompts in (["x"], ["x", "y" * 30])
    )
    assert alone == together
    policy.save(tmp_path / "adapter")
    assert (
        load_policy(str(tmp_path), adapter=str(tmp_path / "adapter")).adapter_hash() == policy.adapter_hash()
    )
