"""What a policy writes: the seed decides, the batch does not, and batches shrink when memory runs out."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROMPTS, close, spy, stir
from peft import LoraConfig, get_peft_model

from agents.policy import generate
from agents.policy.generate import LastLogits
from agents.policy.load import load_policy
from agents.policy.policy import Policy
from agents.policy.seeds import seeded
from envs.streams import seed_of
from envs.types import LanguageModel


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


def test_no_step_keeps_its_logits(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(policy, monkeypatch)
    holders: list[LastLogits] = []
    real = LastLogits.__call__

    def call(self: LastLogits, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        holders.append(self)
        return real(self, input_ids, scores)

    monkeypatch.setattr(LastLogits, "__call__", call)
    policy.generate(PROMPTS, 2, temperature=0.7, max_new_tokens=6)
    assert len(holders) > 2 and {holder.logits_B_V for holder in holders} == {None}
    assert [(output.logits, output.scores) for output in calls] == [(None, None)]


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


@pytest.mark.parametrize("which", ["pocket", "plain", "foreign_mistral"])
def test_prompts_are_read_once_and_completions_are_the_same(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(str(request.getfixturevalue(which)))
    stir(policy)
    prompts = ["list all files", "count the lines of notes.txt and say how many there are", "ping db.test"]
    widths: list[int] = []
    generator = policy.generator
    read_ahead = generator._read_ahead

    def watched(inputs: Any, mask: Any, of_row: Any, before: int) -> Any:
        widths.append(len(inputs))
        return read_ahead(inputs, mask, of_row, before)

    monkeypatch.setattr(generator, "_read_ahead", watched)
    once = policy.generate(prompts, 4, temperature=0.9, max_new_tokens=12, seed=3)
    assert widths == [3]
    monkeypatch.setattr(generator, "reads_ahead", False)
    each = policy.generate(prompts, 4, temperature=0.9, max_new_tokens=12, seed=3)
    for row, other in zip(once, each, strict=True):
        for one, two in zip(row, other, strict=True):
            assert (one.text, one.token_ids, one.truncated) == (two.text, two.token_ids, two.truncated)
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-3)
    assert len({completion.text for row in once for completion in row}) > 6


SAME = "list the files of a folder and count them. " * 4  # longer than what is worth to be read once


@pytest.mark.parametrize("rests", [["", "x", "ping web1.test 5 times"], ["a", "b"]])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_prompts_begin_with_is_read_once(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, rests: list[str], temperature: float
) -> None:
    stir(policy)
    prompts = [SAME + rest for rest in rests]
    generator = policy.generator
    read: list[int] = []

    def note(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        read.append(given["input_ids"].numel())

    def answers(n: int) -> list[Any]:
        read.clear()
        with policy.model.get_base_model().register_forward_pre_hook(note, with_kwargs=True):
            written = policy.generate(prompts, n, temperature=temperature, max_new_tokens=8, seed=3)
        return [completion for row in written for completion in row]

    for n in (1, 4):
        monkeypatch.setattr(generator, "reads_ahead", True)
        once, tokens = answers(n), sum(read)
        monkeypatch.setattr(generator, "reads_ahead", False)
        each = answers(n)
        assert tokens < sum(read)
        for one, two in zip(once, each, strict=True):
            assert (one.text, one.token_ids) == (two.text, two.token_ids)
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-3)


def test_a_window_that_slides_counts_padding(brief: Path, tmp_path: Path) -> None:
    """A short prompt beside a long one must not lose its beginning."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(brief)
    model.config.sliding_window = 90
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(brief).save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path))
    assert policy.generator.window == 90
    prompts = [SAME + "x", SAME + "ping web1.test 5 times " * 6]
    lengths = [len(ids) for ids in policy.prompt_ids(prompts)]
    assert lengths[0] < 90 < lengths[1]
    for row, prompt in zip(policy.generate(prompts, temperature=0.0, max_new_tokens=4), prompts, strict=True):
        pair = (policy.prompt_ids([prompt])[0], row[0].token_ids)
        assert row[0].logprobs == pytest.approx(policy.logprobs_of_ids([pair])[0], abs=1e-3)


def test_samples_among_the_likeliest_tokens_alone(policy: Policy) -> None:
    stir(policy)
    prompts = ["list files", "count the lines of notes.txt"]
    greedy = policy.generate(prompts, temperature=0.0, max_new_tokens=12)
    for options in ({"top_k": 1}, {"top_p": 1e-6}):
        written = policy.generate(prompts, 3, temperature=2.0, max_new_tokens=12, seed=1, **options)
        for row, best in zip(written, greedy, strict=True):
            assert [completion.token_ids for completion in row] == [best[0].token_ids] * 3
            # The log-probabilities are those of the whole distribution.
            assert row[0].logprobs == pytest.approx(best[0].logprobs, abs=1e-3)
    free = policy.generate(prompts, 3, temperature=2.0, max_new_tokens=12, seed=1)
    few = policy.generate(prompts, 3, temperature=2.0, max_new_tokens=12, seed=1, top_k=3, top_p=0.95)
    assert len({completion.token_ids for row in free for completion in row}) > 4
    assert few != free


def test_rows_that_have_ended_leave_the_batch(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    stir(policy)
    monkeypatch.setattr(policy.tokens, "one_line", False)
    prompts = [SAME + rest for rest in ("", "x", "ping web1.test 5 times", "wc", "ls")]
    rows: list[int] = []

    def note(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        rows.append(len(given["input_ids"]))

    def answers() -> list[Any]:
        rows.clear()
        with policy.model.get_base_model().register_forward_pre_hook(note, with_kwargs=True):
            written = policy.generate(prompts, 6, temperature=1.5, max_new_tokens=20, seed=3)
        return [completion for row in written for completion in row]

    # Some answers end at their third token, some later or not at all.
    policy.tokens.eos = frozenset({*policy.tokens.eos, answers()[0].token_ids[2]})
    monkeypatch.setattr(generate, "STEPS", 20)
    wholly, in_all = answers(), sum(rows)
    monkeypatch.setattr(generate, "STEPS", 4)
    in_steps = answers()
    assert sum(rows) < in_all and min(rows[1:]) < max(rows)
    lengths = {len(completion.token_ids) for completion in in_steps}
    assert min(lengths) < 4 < max(lengths)
    for place, (one, two) in enumerate(zip(in_steps, wholly, strict=True)):
        if len(one.token_ids) < 4:  # from then on others draw from the same stream
            assert (one.token_ids, one.truncated) == (two.token_ids, two.truncated)
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-3)
        prompt = policy.prompt_ids([prompts[place // 6]])[0]
        values = policy.logprobs_of_ids([(prompt, one.token_ids)])[0]
        assert one.logprobs == pytest.approx(values, abs=1e-3)
    assert answers() == in_steps


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
    assert [len(row) for row in written] == [3, 3] and not policy.generator.reads_ahead

    # Nor is what they begin with read once: padding would stand in the middle.
    prompts = [SAME + "x", SAME + "ping web1.test"]
    apart = policy.generate(prompts, temperature=0.0, max_new_tokens=6)
    policy.generator.reads_ahead = True
    assert policy.generate(prompts, temperature=0.0, max_new_tokens=6) == apart
    assert not policy.generator.reads_ahead


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
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: "
            "can't allocate memory: you tried to allocate 9 B"
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
    assert tried[:3] == [8, 4, 2] and policy.batch_sizes == {"writing": 2, "scoring": 128, "training": 128}
    assert "out of memory in writing: going on with 2 sequences at a time" in capsys.readouterr().out
    for expected in ([8, 4, 2, 2, 2, 2], [2] * 4):
        del tried[:]
        for found, value in zip(policy.logprobs(prompts, prompts), values, strict=True):
            assert close(found, value)
        assert tried == expected


def test_one_row_that_does_not_fit_is_an_error_at_once(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = limit(policy, monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        policy.generate(["x"], temperature=0.0)
    assert tried == [1] and policy.writing.size == 128
    with pytest.raises(torch.OutOfMemoryError):
        policy.logprobs(["x", "y"], ["x", "y"])
    assert tried == [1, 2, 1]


def test_other_errors_pass(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = limit(policy, monkeypatch, 0, RuntimeError("expected all tensors on the same device"))
    with pytest.raises(RuntimeError, match="same device"):
        policy.generate(["x", "y"], temperature=0.0)
    assert tried == [2] and policy.writing.size == 128
