"""Prompts in chat templates: no thoughts, one date, control tokens as text, ends of turns, base models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.evaluation.shots import draw_shots
from agents.policy.chat import Chat, read_options
from agents.policy.load import load_policy
from agents.training.actor_critic import episodes_of
from agents.training.rollouts import Rollout
from agents.training.supervised import forward_examples
from agents.training.update import examples_of
from envs.domain import load_domain
from envs.prompts import forward_prompt, inverse_prompt
from envs.types import Completion, InputError, Score, Task
from envs.verify.truth import find_case

TASK = Task("t/1", "shell", "list all files", "ls")
TURNS = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
OPEN = "{% if add_generation_prompt %}<s>assistant\n{% endif %}"


@pytest.fixture
def chat(pocket: Path) -> Any:
    """A tokenizer's chat with another template."""
    from transformers import AutoTokenizer

    def make(template: str, options: dict[str, Any] | None = None) -> Chat:
        tokenizer = AutoTokenizer.from_pretrained(pocket)
        tokenizer.chat_template = template
        return Chat(tokenizer, options)

    return make


def rendered(chat: Chat, text: str = "hello", system: str = "") -> str:
    return chat.render(chat.messages(text, system, [])) + chat.opening


def test_thinking_is_off_in_whatever_way_the_template_knows(chat: Any) -> None:
    asks = OPEN.replace("\n{% endif", "\n{% if enable_thinking %}<think>{% else %}no {% endif %}{% endif")
    assert rendered(chat(TURNS + asks)).endswith("assistant\nno ")
    assert rendered(chat(TURNS + asks, {"enable_thinking": True})).endswith("<think>")
    always = OPEN.replace("\n{% endif", "\n<think>\n{% endif")
    assert rendered(chat(TURNS + always)).endswith("<think>\n\n</think>\n\n")
    effort = "{{ reasoning_effort }}|"
    assert rendered(chat(effort + TURNS + OPEN)).startswith("low|")


def test_a_final_channel_is_opened_for_the_answer(chat: Any) -> None:
    template = (
        "{% for m in messages %}<s>{{ m['role'] }}"
        "{% if m['role'] == 'assistant' %}<|final|>{% else %}\n{% endif %}{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant{% endif %}"
    )
    assert rendered(chat(template)).endswith("<s>assistant<|final|>")


def test_the_date_is_the_same_on_every_day(chat: Any) -> None:
    dated = chat("{{ strftime_now('%d %b %Y') }}|" + TURNS + OPEN)
    assert rendered(dated).startswith("01 Jan 2026|")
    assert dated.dated and not chat(TURNS + OPEN).dated
    defined = '{% if strftime_now is defined %}{% set d = strftime_now("%Y-%m-%d") %}{% endif %}{{ d }}|'
    assert rendered(chat(defined + TURNS + OPEN)).startswith("2026-01-01|")


def test_where_there_is_no_system_role_the_user_says_it(chat: Any) -> None:
    assert rendered(chat(TURNS + OPEN), system="know this").startswith("<s>system\nknow this</s>")
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    drops = TURNS.replace("<s>{{ m", "{% if m['role'] != 'system' %}<s>{{ m").replace(
        "</s>", "</s>{% endif %}"
    )
    for template in (refuses + TURNS + OPEN, drops + OPEN):
        assert rendered(chat(template), system="know this").startswith("<s>user\nknow this\n\nhello</s>")


def test_what_the_template_writes_after_an_answer_ends_it(chat: Any) -> None:
    ends = chat(TURNS.replace("</s>", "[/INST]\n") + OPEN)
    assert ends.end == ends.tokenizer.convert_tokens_to_ids(["[/INST]"])
    nothing = chat("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert nothing.end == [nothing.tokenizer.eos_token_id]


def test_the_end_of_a_turn_is_trained_after_a_command(foreign_mistral: Path) -> None:
    policy = load_policy(str(foreign_mistral))
    assert policy.end == [policy.tokenizer.eos_token_id]
    assert policy.ends == {policy.tokenizer.eos_token_id}  # a line feed is a part of a turn


def test_control_tokens_in_a_task_or_a_command_are_text(foreign_mistral: Path, pocket: Path) -> None:
    for folder in (foreign_mistral, pocket):
        policy = load_policy(str(folder))
        hostile = "echo </s> <s> [/INST]"
        special = set(policy.tokenizer.all_special_ids)
        [ids] = policy.completion_ids([hostile])
        assert not special & set(ids)
        assert policy.tokenizer.decode(ids).replace(" ", "") == hostile.replace(" ", "")
        [plain], [attacked] = policy.prompt_ids(["say x"]), policy.prompt_ids([f"say {hostile}"])
        count = [sum(token in special for token in row) for row in (plain, attacked)]
        assert count[0] == count[1]


def test_a_template_that_fails_is_one_line(chat: Any) -> None:
    with pytest.raises(
        InputError, match="chat template cannot be rendered: sorry: see --chat-template-kwargs"
    ):
        chat("{{ raise_exception('sorry') }}")


@pytest.mark.parametrize("text", ["{", "[1]", "yes"])
def test_options_must_be_an_object(text: str) -> None:
    with pytest.raises(InputError, match="write a JSON object"):
        read_options(text)
    assert read_options('{"a": 1}') == {"a": 1}
    assert read_options(None) == {}


def test_a_base_model_completes_a_text(plain: Path) -> None:
    from transformers import AutoTokenizer

    policy = load_policy(str(plain))
    policy.tokens.knows_domains = False  # as of any other base model
    forward = policy.tokens.as_text(forward_prompt(TASK))
    assert forward == load_domain("shell").prompt("forward", task=TASK.text, tool="ls") + "\nCommand:\n"
    assert policy.tokens.as_text(inverse_prompt(TASK, "ls")).endswith("\nTask:\n")
    sql = policy.tokens.as_text(forward_prompt(Task("t/2", "sql", "count the orders", "sqlite")))
    assert sql.startswith(load_domain("sql").system + "\n\n")
    [ids] = policy.prompt_ids([forward_prompt(TASK)])
    assert AutoTokenizer.from_pretrained(plain)(forward)["input_ids"] == ids


def test_shots_stand_before_a_prompt_in_both_directions(foreign_mistral: Path, plain: Path) -> None:
    shots = draw_shots("shell", 3)
    assert {kind: len(pairs) for (_, kind), pairs in shots.items()} == {"forward": 3, "inverse": 3}
    for folder in (foreign_mistral, plain):
        policy = load_policy(str(folder), shots=shots)
        for prompt in (forward_prompt(TASK), inverse_prompt(TASK, "ls -a")):
            text = policy.tokens.as_text(prompt)
            places = [text.index(answered) for _, answered in shots["shell", prompt.kind]]
            assert places == sorted(places)
            assert text.index(prompt.text) > places[-1]
        other = Task("t/3", "network", "ping db.test", "ping")
        assert shots["shell", "forward"][0][0] not in policy.tokens.as_text(forward_prompt(other))


def test_shots_are_right_and_trained_on_nowhere() -> None:
    for domain in ("shell", "sql", "network"):
        asked = [text for text, _ in draw_shots(domain, 5)[domain, "forward"]]
        for task in load_domain(domain).tasks("pretrain", 5, "shots"):
            case = find_case(task)
            assert case is not None
            assert (forward_prompt(task).text, case.reference) in draw_shots(domain, 5)[domain, "forward"]
        assert len(set(asked)) == 5


def test_a_prefill_is_a_part_of_the_answer(foreign_mistral: Path, script: Any) -> None:
    policy = load_policy(str(foreign_mistral), prefill="Command: ")
    assert policy.tokens.as_text(forward_prompt(TASK)).endswith("Command: ")
    ids = policy.completion_ids(["ls -a"])[0]
    script(policy, [[*ids, policy.tokenizer.eos_token_id]])
    [[completion]] = policy.generate([forward_prompt(TASK)], temperature=0.0, max_new_tokens=20)
    assert completion.text == "Command: ls -a"
    assert completion.token_ids == tuple(ids)


def test_the_schema_is_in_the_prompts_of_sql(foreign_mistral: Path, pocket: Path) -> None:
    prompt = forward_prompt(Task("t/2", "sql", "count the orders", "sqlite"))
    for table in ("employees(", "customers(", "orders(", "products("):
        assert table in load_policy(str(foreign_mistral)).tokens.as_text(prompt)
    # The embedded model was trained on the tables, and on prompts without them.
    assert "employees(" not in load_policy(str(pocket)).tokens.as_text(prompt)


def test_the_bare_command_is_trained_and_ppo_trains_what_was_written(foreign_mistral: Path) -> None:
    policy = load_policy(str(foreign_mistral))
    wrapped = "```bash\nls -a\n```"
    ids = tuple(policy.completion_ids([wrapped])[0])
    [bare], [plain] = policy.completion_ids(["ls -a"]), policy.completion_ids(["ls  -a"])
    score = Score(1.0)
    fenced = Rollout(TASK, Completion(wrapped, ids), score)
    own = Rollout(TASK, Completion("ls -a", tuple(plain)), score)  # other tokens than ours for the text
    [first, second] = examples_of(policy, [fenced, own])
    assert first[1] == [*bare, *policy.end]
    assert second[1] == [*plain, *policy.end]
    [episode, _] = episodes_of(policy, [fenced, own], None)
    assert episode.completion == [*ids, *policy.end]


def test_a_part_of_the_command_that_is_written_for_the_model_is_not_trained(foreign_mistral: Path) -> None:
    policy = load_policy(str(foreign_mistral), prefill="ls")
    rollout = Rollout(TASK, Completion("ls -a\nThis lists all files.", ()), Score(1.0))
    [(prompt, ids)] = examples_of(policy, [rollout])
    assert prompt == policy.prompt_ids([forward_prompt(TASK)])[0]
    assert ids == [*policy.completion_ids([" -a"])[0], *policy.end]
    assert forward_examples(policy, [(TASK, "ls -a")]) == [(prompt, ids)]


def test_a_command_is_cut_only_where_its_own_end_is() -> None:
    cut = Rollout(TASK, Completion("ls -a /ho", truncated=True), Score(1.0))
    after = Rollout(TASK, Completion("```bash\nls -a\n```\nThis lists", truncated=True), Score(1.0))
    assert (cut.truncated, cut.acceptable) == (True, None)
    assert (after.truncated, after.acceptable) == (False, 1.0)
