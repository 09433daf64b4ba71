"""Where a line ends, and which text the tokens are: for several tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROMPTS, ids_of, spy

from agents.policy.load import load_policy
from agents.policy.policy import Policy
from envs.types import Completion


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
    prompts = ["x", "yy"]
    policy.generate(prompts, temperature=0.0, max_new_tokens=50)
    longest = max(len(ids) for ids in policy.prompt_ids(prompts))
    assert calls[0].sequences.shape[1] - longest == len(wanted) + 1


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
    end = policy.tokenizer.eos_token_id
    # An answer is the whole turn, over several lines.
    for rows, text in (
        ([*wanted, end], "ls -a"),
        ([*wanted, feed, *wanted, end], "ls -a\n ls -a"),
        ([space, feed, *wanted, feed, end], "ls -a"),
    ):
        script(policy, [rows])
        [[completion]] = policy.generate(["x"], temperature=0.0, max_new_tokens=20)
        assert (completion.text, completion.truncated) == (text, False)
        assert completion.token_ids == tuple(rows[:-1])


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
