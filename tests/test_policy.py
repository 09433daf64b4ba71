"""The policy: what it writes, what it thinks of a text, its adapter, and what it refuses to load."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_model, stir
from peft import LoraConfig, get_peft_model

from agents.policy import policy as policy_module
from agents.policy.load import Lora, load_policy
from agents.policy.policy import Policy
from agents.policy.seeds import seed_of, seeded
from agents.training.update import fine_tune
from envs.types import Completion, InputError, LanguageModel

PROMPTS = [
    "list files",
    "count the lines of notes.txt and of every other text file in the folder docs, then sort them",
    "x",
    "ping web1.test 5 times and then stop",
    "list files",
]


def ids_of(policy: Policy, text: str) -> list[int]:
    return policy.completion_ids([text])[0]


def spy(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list to which the model's output of each batch will be added."""
    outputs: list[Any] = []
    real = policy.model.generate

    def generate(**options: Any) -> Any:
        outputs.append(real(**options))
        return outputs[-1]

    monkeypatch.setattr(policy.model, "generate", generate)
    return outputs


def close(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, atol=tolerance))


# What it writes


def test_it_is_a_language_model(policy: Policy) -> None:
    assert isinstance(policy, LanguageModel)


def test_samples_depend_on_the_seed_alone(policy: Policy) -> None:
    first = policy.generate(PROMPTS, 3, temperature=0.7, max_new_tokens=12, seed=1)
    torch.manual_seed(123)
    assert policy.generate(PROMPTS, 3, temperature=0.7, max_new_tokens=12, seed=1) == first
    assert policy.generate(PROMPTS, 3, temperature=0.7, max_new_tokens=12, seed=2) != first
    assert [len(row) for row in first] == [3] * 5
    assert (
        len({completion.text for completion in first[0] + first[4]}) > 3
    )  # copies, and equal prompts, are drawn anew


@pytest.mark.parametrize("batch_size", [2, 128])
@pytest.mark.parametrize("folder", ["pocket", "plain", "foreign_mistral"])
def test_results_follow_the_prompts_whatever_shares_their_batch(
    folder: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    policy = load_policy(str(request.getfixturevalue(folder)), batch_size=batch_size)
    stir(policy)
    together = policy.generate(PROMPTS, temperature=0.0, max_new_tokens=10)
    assert len({row[0].text for row in together}) == 4
    for prompt, [completion] in zip(PROMPTS, together, strict=True):
        [[alone]] = policy.generate([prompt], temperature=0.0, max_new_tokens=10)
        assert (alone.text, alone.token_ids, alone.truncated) == (
            completion.text,
            completion.token_ids,
            completion.truncated,
        )
        assert close(alone.logprobs, completion.logprobs)


def test_greedy_duplicates_are_decoded_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(policy, monkeypatch)
    written = policy.generate(PROMPTS, 3, temperature=0.0, max_new_tokens=4)
    assert (
        [len(output.sequences) for output in calls] == [4]
        and written[0] == written[4]
        and written[0] == [written[0][0]] * 3
    )
    assert len({row[0].text for row in written}) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_nothing_asked_nothing_written(policy: Policy, temperature: float) -> None:
    assert policy.generate([], temperature=temperature) == []
    assert policy.generate(["a", "b"], 0, temperature=temperature) == [[], []]
    assert (
        policy.logprobs([], [])
        == policy.logprobs_of_ids([])
        == policy.prompt_ids([])
        == policy.completion_ids([])
        == []
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_logprobs_are_those_of_the_distribution_at_temperature_one(
    policy: Policy, temperature: float
) -> None:
    written = policy.generate(PROMPTS, 2, temperature=temperature, max_new_tokens=10, seed=3)
    prompts = policy.prompt_ids(PROMPTS)
    for prompt, row in zip(prompts, written, strict=True):
        for completion in row:
            assert len(completion.logprobs) == len(completion.token_ids) > 0
            assert close(completion.logprobs, policy.logprobs_of_ids([(prompt, completion.token_ids)])[0])


def test_what_a_model_brings_for_generation_is_not_used(pocket: Path, tmp_path: Path) -> None:
    plain = load_policy(str(pocket))
    folder = shutil.copytree(pocket, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {
        "do_sample": True,
        "top_k": 1,
        "top_p": 0.1,
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "min_length": 99,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    opinionated = load_policy(str(folder))
    for temperature in (0.0, 1.0):
        options: dict[str, Any] = {"temperature": temperature, "max_new_tokens": 16, "seed": 5}
        assert opinionated.generate(PROMPTS, 2, **options) == plain.generate(PROMPTS, 2, **options)


def test_nothing_outside_changes(policy: Policy) -> None:
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    for training in (True, False):
        policy.model.train(training)
        policy.generate(PROMPTS, temperature=0.7, max_new_tokens=3)
        policy.logprobs(["a"], ["b"])
        assert all(module.training == training for module in policy.model.modules())
    assert before == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    with pytest.raises(ZeroDivisionError), policy._evaluating():
        raise ZeroDivisionError
    policy.model.train()
    # Dropout is off although the model is in training mode.
    assert policy.generate(PROMPTS, temperature=0.0, max_new_tokens=6) == policy.generate(
        PROMPTS, temperature=0.0, max_new_tokens=6
    )


def test_seeds() -> None:
    assert seed_of(0, 1, "a") != seed_of(0, 1, "b") and 0 <= seed_of("x") < 2**63
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with seeded("a", 1):
        drawn = torch.rand(3)
    assert torch.equal(state, torch.get_rng_state())

    @seeded("a", 1)
    def fail() -> None:
        assert torch.equal(drawn, torch.rand(3))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(state, torch.get_rng_state())


# Where a line ends


def test_a_line_feed_ends_the_line(policy: Policy, script: Callable[..., None]) -> None:
    feed, eos, wanted = ids_of(policy, "\n"), policy.tokenizer.eos_token_id, ids_of(policy, "ls -a docs")
    for rows, kept in {
        "line feed": ([*wanted, *feed, *wanted], wanted),
        "end of sequence": ([*wanted, eos, *wanted], wanted),
        "leading line feeds": ([*feed, *feed, *wanted, *feed, *wanted], [*feed, *feed, *wanted]),
        "leading blank line": (
            [*ids_of(policy, " "), *feed, *wanted, *feed, *wanted],
            [*ids_of(policy, " "), *feed, *wanted],
        ),
        "leading token of both": (
            [*ids_of(policy, " \n"), *wanted, *ids_of(policy, " \n"), *wanted],
            [*ids_of(policy, " \n"), *wanted],
        ),
    }.values():
        script(policy, [rows])
        [[completion]] = policy.generate(["x"], temperature=0.0, max_new_tokens=len(rows) + 5)
        assert completion == Completion("ls -a docs", tuple(kept), completion.logprobs, truncated=False)
        assert len(completion.logprobs) == len(kept)


def test_a_token_may_hold_content_and_a_line_feed(policy: Policy, script: Callable[..., None]) -> None:
    quote, listing, wanted = ids_of(policy, '"\n'), ids_of(policy, "\nls"), ids_of(policy, 'grep "x')
    assert len(quote) == len(listing) == 1
    for rows, text, kept in [
        ([*wanted, *quote, *wanted], 'grep "x"', [*wanted, *quote]),
        ([*quote, *wanted], '"', quote),
        ([*listing, *wanted[1:], *quote, *wanted], None, [*listing, *wanted[1:], *quote]),
        ([*wanted, *listing, *wanted], 'grep "x', wanted),
    ]:
        script(policy, [rows])
        [[completion]] = policy.generate(["x"], temperature=0.0, max_new_tokens=len(kept) + 1)
        assert completion.token_ids == tuple(kept) and not completion.truncated
        assert completion.text == text or (text is None and completion.text.startswith("ls"))
        assert "\n" not in completion.text


def test_the_line_ends_as_well_where_the_limit_is(policy: Policy, script: Callable[..., None]) -> None:
    wanted, quote = ids_of(policy, 'grep "x'), ids_of(policy, '"\n')
    for last, text, truncated in [
        (ids_of(policy, "\n"), 'grep "x', False),
        ([policy.tokenizer.eos_token_id], 'grep "x', False),
        (quote, 'grep "x"', False),
        (ids_of(policy, "y"), 'grep "xy', True),
    ]:
        script(policy, [[*wanted, *last]])
        [[completion]] = policy.generate(["x"], temperature=0.0, max_new_tokens=len(wanted) + 1)
        assert (completion.text, completion.truncated) == (text, truncated)
    script(policy, [ids_of(policy, "\n") * 3])
    assert policy.generate(["x"], temperature=0.0, max_new_tokens=3)[0][0].text == ""


def test_rows_of_a_batch_end_by_themselves(policy: Policy, script: Callable[..., None]) -> None:
    wanted, feed, eos = ids_of(policy, "ls -a docs"), ids_of(policy, "\n"), policy.tokenizer.eos_token_id
    script(policy, [[*wanted[:1], *feed], [*wanted[:2], eos], [eos], wanted * 3])
    written = [
        row[0]
        for row in policy.generate(
            ["aaaa", "aaa", "aa", "a"], temperature=0.0, max_new_tokens=len(wanted) + 2
        )
    ]
    assert [completion.token_ids for completion in written[:3]] == [tuple(wanted[:1]), tuple(wanted[:2]), ()]
    assert [completion.truncated for completion in written] == [False, False, False, True]
    assert written[2].text == "" and len(written[3].token_ids) == len(wanted) + 2


def test_generation_stops_when_all_lines_have_ended(
    policy: Policy, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(policy, monkeypatch)
    wanted = ids_of(policy, "ls")
    script(policy, [[*wanted, *ids_of(policy, "\n")]])
    policy.generate(["x", "yy"], temperature=0.0, max_new_tokens=50)
    assert len(calls[0].logits) == len(wanted) + 1


def test_random_text_has_no_line_feed(policy: Policy) -> None:
    rows = policy.generate(PROMPTS, 40, temperature=3.0, max_new_tokens=20, seed=1)
    assert all(
        "\n" not in completion.text and completion.text == completion.text.strip()
        for row in rows
        for completion in row
    )
    assert len({completion.truncated for row in rows for completion in row}) == 2


def test_decoding_leaves_spaces_before_punctuation(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.tokenizer, "clean_up_tokenization_spaces", True)
    monkeypatch.setattr(
        policy.tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True
    )
    ids = ids_of(policy, "find . ! -name x")
    assert policy.completion(ids, [0.0] * len(ids)).text == "find . ! -name x"


# Other tokenizers


def test_without_a_chat_template_a_line_feed_ends_the_prompt(plain: Path) -> None:
    policy = load_policy(str(plain))
    assert policy.tokenizer.decode(policy.prompt_ids(["list files"])[0]) == "list files\n"
    assert policy.pad == policy.tokenizer.eos_token_id


def test_with_a_chat_template_the_completion_follows_at_once(policy: Policy) -> None:
    [ids] = policy.prompt_ids(["list\nfiles"])
    assert (
        policy.tokenizer.decode(ids) == "<s>[INST] list\nfiles [/INST]"
        and ids.count(policy.tokenizer.bos_token_id) == 1
    )


def test_a_tokenizer_like_mistrals(foreign_mistral: Path, script: Callable[..., None]) -> None:
    policy = load_policy(str(foreign_mistral))
    tokens = policy.tokenizer.convert_ids_to_tokens
    [prompt] = policy.prompt_ids(["list all files\né"])
    assert (
        tokens(prompt)[:6] == ["<s>", "▁[", "INST", "]", "▁list", "▁all"]
        and prompt.count(policy.tokenizer.bos_token_id) == 1
    )
    assert "<0x0A>" in tokens(prompt) and "<unk>" not in tokens(prompt) and tokens(prompt)[-1] == "]"
    # A completion begins as the model writes it after the prompt: with the space that decoding drops.
    wanted = ids_of(policy, "ls -a")
    assert tokens(wanted) == ["▁ls", "▁", "-", "a"]
    space, feed = policy.tokenizer.convert_tokens_to_ids(["▁", "<0x0A>"])
    for rows in (
        [*wanted, feed, *wanted],
        [space, feed, *wanted, feed],
        [*wanted, policy.tokenizer.eos_token_id],
    ):
        script(policy, [rows])
        [[completion]] = policy.generate(["x"], temperature=0.0, max_new_tokens=20)
        assert (completion.text, completion.truncated) == ("ls -a", False)
        assert completion.token_ids[-len(wanted) :] == tuple(wanted)


def test_padding_that_is_the_end_of_sequence_token_is_no_context(foreign_mistral: Path) -> None:
    policy = load_policy(str(foreign_mistral))
    assert policy.tokenizer.pad_token_id is None and policy.pad == policy.tokenizer.eos_token_id
    alone = policy.logprobs(["x"], ["ls"])
    assert close(alone[0], policy.logprobs(["x", "x" * 60], ["ls", "ls -a" * 9])[0])


def test_end_of_sequence_tokens_of_model_and_tokenizer_both_count(
    pocket: Path, tmp_path: Path, script: Callable[..., None]
) -> None:
    folder = shutil.copytree(pocket, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    for eos in ([5, 6], 5, None):
        (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": eos}))
        policy = load_policy(str(folder))
        for token in {policy.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}:
            script(policy, [[*ids_of(policy, "ls"), token, *ids_of(policy, "ls")]])
            assert policy.generate(["x"], temperature=0.0, max_new_tokens=9)[0][0].text == "ls"


def test_the_model_may_have_more_tokens_than_the_tokenizer(
    pocket: Path, tmp_path: Path, script: Callable[..., None]
) -> None:
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(pocket, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(448)
    model.save_pretrained(folder)
    policy = load_policy(str(folder))
    script(policy, [[*ids_of(policy, "ls"), 447, policy.tokenizer.eos_token_id]])
    assert policy.generate(["x"], temperature=0.0, max_new_tokens=9)[0][0].text == "ls"


# Log-probabilities


def by_hand(policy: Policy, prompt: list[int], completion: list[int]) -> list[float]:
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompt + completion])).logits[0].float()
    table = logits.log_softmax(-1)
    return [float(table[len(prompt) - 1 + step, token]) for step, token in enumerate(completion)]


def test_logprobs_by_hand_in_any_batch(policy: Policy) -> None:
    texts = ["ls -a docs", "", "find . -name x | wc -l", "é", "ls"]
    for batch_size in (128, 2, 1):
        policy.batch_size = batch_size
        values = policy.logprobs(PROMPTS, texts)
        for prompt, text, row in zip(
            policy.prompt_ids(PROMPTS), policy.completion_ids(texts), values, strict=True
        ):
            assert len(row) == len(text) and close(row, by_hand(policy, prompt, text))
    assert values[1] == [] and all(value < 0 for row in values for value in row)
    assert policy.logprobs(["a", "b"], ["", ""]) == [[], []]


def test_as_many_continuations_as_prompts(policy: Policy) -> None:
    with pytest.raises(ValueError):
        policy.logprobs(["a", "b"], ["c"])


def test_only_losses_have_gradients(policy: Policy) -> None:
    pairs = [
        (policy.prompt_ids(["x"])[0], ids_of(policy, "ls -a")),
        (policy.prompt_ids(["yyyy"])[0], ids_of(policy, "ls")),
    ]
    assert torch.is_grad_enabled()
    values = policy.logprobs_of_ids(pairs)
    assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in policy.trainable())
    logprobs, mask = policy.token_logprobs(pairs)
    assert logprobs.requires_grad and mask.sum(dim=1).tolist() == [len(completion) for _, completion in pairs]
    assert all(
        close(row[wanted].tolist(), value) for row, wanted, value in zip(logprobs, mask, values, strict=True)
    )
    assert not logprobs[~mask].any()


# When memory runs out


def limit(policy: Policy, monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """Forward passes of more than `most` rows fail. Returns a list of the rows of those that are tried."""
    tried = []

    def forward(*arguments: Any, input_ids: Any = None, **options: Any) -> Any:
        tried.append(len(input_ids))
        if len(input_ids) > most:
            raise error
        return real(*arguments, input_ids=input_ids, **options)

    inner = policy.model.get_base_model()
    real = inner.forward
    monkeypatch.setattr(inner, "forward", forward)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_batches_are_halved_for_good(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, error: Exception, capsys: Any
) -> None:
    prompts = [str(number) * 3 for number in range(8)]
    wanted, values = (
        policy.generate(prompts, temperature=0.0, max_new_tokens=4),
        policy.logprobs(prompts, prompts),
    )
    tried = limit(policy, monkeypatch, 3, error)
    written = policy.generate(prompts, temperature=0.0, max_new_tokens=4)
    assert [row[0].text for row in written] == [row[0].text for row in wanted]
    assert tried[:3] == [8, 4, 2] and policy.batch_size == 2
    assert "2 sequences at a time" in capsys.readouterr().out
    del tried[:]
    assert (
        all(close(a, b) for a, b in zip(policy.logprobs(prompts, prompts), values, strict=True))
        and tried == [2] * 4
    )


def test_one_row_that_does_not_fit_is_an_error_at_once(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = limit(policy, monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        policy.generate(["x"], temperature=0.0)
    assert tried == [1] and policy.batch_size == 128
    with pytest.raises(torch.OutOfMemoryError):
        policy.logprobs(["x", "y"], ["x", "y"])
    assert tried == [1, 2, 1]


def test_other_errors_pass(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = limit(policy, monkeypatch, 0, RuntimeError("expected all tensors on the same device"))
    with pytest.raises(RuntimeError, match="same device"):
        policy.generate(["x", "y"], temperature=0.0)
    assert tried == [2] and policy.batch_size == 128


# The adapter


def thoughts(policy: Policy) -> list[list[float]]:
    return policy.logprobs(["list files", "x"], ["ls -a", "ping"])


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
    with pytest.raises(InputError, match=r"ema\.safetensors cannot be read"):
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


def train(policy: Policy) -> None:
    [prompt] = policy.prompt_ids(["list files"])
    example = (prompt, [*ids_of(policy, "ls"), policy.tokenizer.eos_token_id])
    fine_tune(policy, [example], lr=1e-3, batch_size=1, epochs=1, stream_parts=(0,))


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


def test_the_shape_of_the_adapter_is_that_of_the_folder(pocket: Path, tmp_path: Path) -> None:
    policy = load_policy(str(pocket), lora=Lora(r=4, alpha=64, dropout=0.2, targets=("q_proj", "up_proj")))
    stir(policy)
    policy.save(tmp_path)
    other = load_policy(str(pocket), adapter=str(tmp_path))
    assert (
        thoughts(other) == thoughts(policy)
        and other.model.peft_config["default"].to_dict()["lora_dropout"] == 0.2
    )


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
    assert "layers or ranks differ" in refused(lora=Lora(r=8))
    assert "layers or ranks differ" in refused(lora=Lora(targets=("q_proj",)))
    # The same weights with another scale are another adapter.
    assert "its lora_alpha is 32, not 16: use the --lora-alpha that" in refused(lora=Lora(alpha=16))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"not a tensor in sight")
    assert "adapter_model.safetensors cannot be read" in refused()
    for damaged in ("[1, 2]", "{"):
        (tmp_path / "a" / "adapter_config.json").write_text(damaged)
        assert "adapter_config.json cannot be read" in refused()
    (tmp_path / "a" / "adapter_config.json").unlink()
    assert "no adapter_config.json there" in refused(lora=Lora())
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors there" in refused(lora=Lora())


def test_the_first_weights_come_from_the_seed(pocket: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    hashes = [load_policy(str(pocket), seed=seed).adapter_hash() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2] and torch.equal(state, torch.get_rng_state())


# What is loaded, and what is not


def refused(name: str | Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_policy(str(name), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(pocket: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pocket, tmp_path / "model"))


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tmp_path / "none", "./none", "~/none"):
        assert (
            refused(name)
            == f"--model {name}: there is no such folder: give embedded, a folder or a reachable hub name"
        )
    for name in ("mistral-7b", "some/model", "none", "a b//c?", ""):
        assert refused(name).startswith(f"--model {name}: cannot be loaded: ")
    assert "cannot be loaded" in refused(tmp_path)
    monkeypatch.setattr(policy_module, "EMBEDDED", tmp_path)
    assert "python -m agents.pretrain" in refused("embedded")


def test_pickles_are_refused(copy: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.save(AutoModelForCausalLM.from_pretrained(copy).state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "model.safetensors" in refused(copy)


def test_damaged_files_get_one_line(copy: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2])
        assert refused(copy).startswith(f"--model {copy}: cannot be loaded: ")
        (copy / name).write_bytes(whole)
    load_policy(str(copy))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_incomplete_weights_are_refused(copy: Path) -> None:
    whole = (copy / "config.json").read_text()
    edit(copy / "config.json", num_hidden_layers=2, layer_types=None)
    assert "9 weights are missing, such as model.layers.1." in refused(copy)
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


def test_save_model_is_not_uniform(tmp_path: Path, policy: Policy) -> None:
    """The tests above would show little on a model that thinks everything equally likely."""
    assert save_model(tmp_path, policy.tokenizer).is_dir()
    values = [value for row in policy.logprobs(PROMPTS, PROMPTS) for value in row]
    assert np.std(values) > 1.0


@pytest.mark.parametrize("which", ["pocket", "plain", "foreign_mistral"])
def test_prompts_are_read_once_and_completions_are_the_same(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(str(request.getfixturevalue(which)))
    stir(policy)
    prompts = ["list all files", "count the lines of notes.txt and say how many there are", "ping db.test"]
    widths: list[int] = []
    read = policy._read
    monkeypatch.setattr(
        policy, "_read", lambda inputs, mask, of_row: widths.append(len(inputs)) or read(inputs, mask, of_row)
    )
    once = policy.generate(prompts, 4, temperature=0.9, max_new_tokens=12, seed=3)
    assert widths == [3]
    policy._reads_ahead = False
    each = policy.generate(prompts, 4, temperature=0.9, max_new_tokens=12, seed=3)
    for row, other in zip(once, each, strict=True):
        for one, two in zip(row, other, strict=True):
            assert (one.text, one.token_ids, one.truncated) == (two.text, two.token_ids, two.truncated)
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-3)
    assert len({completion.text for row in once for completion in row}) > 6


def test_a_model_with_states_reads_each_prompt_for_itself(pocket: Path) -> None:
    from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(pocket)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        **sizes,
        layer_types=["conv", "full_attention"],
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = get_peft_model(
        Lfm2ForCausalLM(config), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    policy = Policy(model, tokenizer)
    written = policy.generate(
        ["list files", "count the lines of notes.txt"], 3, temperature=0.9, max_new_tokens=6, seed=1
    )
    assert [len(row) for row in written] == [3, 3] and not policy._reads_ahead
