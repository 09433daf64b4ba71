"""Prompts in a model's chat template: as the model's makers write a conversation, up to where it answers.

- Thinking is switched off by what the template knows: `enable_thinking`, `thinking`, `reasoning_effort`, or
  a thought that is opened and closed at once. `--chat-template-kwargs` says otherwise.
- The date that some templates print is always `DATE`, so that a run has the same prompts on every day.
- Where a template has no place for a system message, its text stands before the user's.
- Control tokens inside a message or a prefill, such as `</s>` or `<|im_end|>`, are text.
- What the template writes after an answer ends it, and is trained after a command.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from envs.jsonl import from_json
from envs.types import InputError

DATE = datetime.date(2026, 1, 1)
# What a template may ask for -> the value with which the model does not think, or as little as it can.
NO_THINKING = {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}
OPEN_THOUGHT = re.compile(r"<(think|thinking|thought)>\s*\Z")
NOW = re.compile(r"strftime_now\(\s*(['\"])(?P<format>.*?)\1\s*\)")
# Unlikely enough to be found again in what a template makes of them.
ASKED, ANSWERED, TOLD = "qzasked", "qzanswered", "qztold"
Message = dict[str, str]


def read_options(text: str | None) -> dict[str, Any]:
    """The variables in a JSON object, as `--chat-template-kwargs` takes them; InputError if it is none."""
    if text is None:
        return {}
    try:
        options = from_json(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        fix = 'write a JSON object, such as {"enable_thinking": true}'
        raise InputError(f"--chat-template-kwargs {text}: {fix}")
    return options


class Chat:
    """A tokenizer's chat template.

    Args:
        tokenizer: has a chat template.
        options: variables of the template, from `--chat-template-kwargs`.

    Attributes:
        options: these, and those that switch thinking off.
        system: whether the template has a place for a system message.
        dated: whether the template prints a date, which is `DATE` then.
        opening: what stands between the start of the model's turn and its answer.
        end: token ids that the template writes after an answer.

    Raises:
        InputError: the template cannot be rendered.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        try:
            template = tokenizer.get_chat_template()
        except ValueError:  # of several, none is the default
            fix = "name one so in its tokenizer_config.json"
            raise InputError(f"--model: none of its chat templates is named default: {fix}") from None
        self.template = NOW.sub(_frozen, template)
        self.dated = self.template != template
        names = re.findall(r"\w+", self.template)
        self.options = {name: value for name, value in NO_THINKING.items() if name in names}
        self.options |= options or {}
        self.system = self._has_system_role()
        self.opening, closing = self._around_an_answer()
        self.end = self._first_control_token(closing)

    def prompt_ids(
        self, conversations: Sequence[Sequence[Message]], prefills: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of each conversation, up to and with the start of the model's answer."""
        rows = self._apply(
            [list(messages) for messages in conversations],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            sanitize_control_tokens=True,
        )["input_ids"]
        return [[*ids, *self._begun(prefill)] for ids, prefill in zip(rows, prefills, strict=True)]

    def render(self, messages: Sequence[Message], prompt: bool = True) -> str:
        """The text of a conversation, with the start of the model's turn if it is a prompt."""
        return str(self._apply(list(messages), add_generation_prompt=prompt, tokenize=False))

    def _apply(self, messages: Any, **how: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, **how, **self.options
            )
        except Exception as error:  # whatever the template runs into
            if isinstance(error, MemoryError):
                raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(
                f"--model: its chat template cannot be rendered: {reason}: see --chat-template-kwargs"
            ) from None

    def messages(self, text: str, system: str, shots: Sequence[tuple[str, str]]) -> list[Message]:
        """A conversation that asks for an answer to `text`.

        Args:
            system: what the model must know first.
            shots: pairs of what was asked and answered before.
        """
        turns: list[Message] = []
        for asked, answered in shots:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        turns.append({"role": "user", "content": text})
        if system and self.system:
            return [{"role": "system", "content": system}, *turns]
        if system:
            turns[0] = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
        return turns

    def _has_system_role(self) -> bool:
        """Some templates refuse a system message, some leave it out."""
        messages = [{"role": "system", "content": TOLD}, {"role": "user", "content": ASKED}]
        try:
            return TOLD in self.render(messages)
        except InputError:
            return False

    def _around_an_answer(self) -> tuple[str, str]:
        """What the template writes between the start of the model's turn and an answer, and after it."""
        question = {"role": "user", "content": ASKED}
        start = self.render([question])
        if ASKED not in start:
            problem = "its chat template leaves out what the user says"
            raise InputError(f"--model: {problem}: correct its chat_template, or give another model")
        whole = self.render([question, {"role": "assistant", "content": ANSWERED}], prompt=False)
        before, _, after = whole.partition(ANSWERED)
        opening = before.removeprefix(start) if before.startswith(start) else ""
        opening = opening.strip(" ") and opening  # a space before an answer is a part of its first token
        thought = OPEN_THOUGHT.search(start + opening)
        wants_thought = any(self.options.get(name) for name in ("enable_thinking", "thinking"))
        if thought is not None and not wants_thought:
            opening += f"\n</{thought[1]}>\n\n"
        return opening, after

    def _first_control_token(self, text: str) -> list[int]:
        """The tokens of a text up to its first control token; the tokenizer's own end where it has none."""
        ids = self._encode(text)
        control = {row for row, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for place, token in enumerate(ids):
            if token in control:
                return ids[: place + 1]
        return [int(self.tokenizer.eos_token_id)]

    def _begun(self, prefill: str) -> list[int]:
        """Token ids of the beginning of an answer."""
        if any(token in prefill for token in self._control):
            return self._encode(self.opening) + self._encode(prefill, split_special_tokens=True)
        return self._encode(self.opening + prefill)

    def _encode(self, text: str, **how: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **how)["input_ids"]) if text else []


def control_tokens(tokenizer: Any) -> list[str]:
    """The texts of a tokenizer's control tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _frozen(match: re.Match[str]) -> str:
    """The date in a template's own format, as a text in the template's language."""
    return repr(DATE.strftime(match["format"]))
