"""What a domain's YAML file says, as records: slots, paraphrases, prompts, verification.

The messages of the checks here are shown to whoever wrote the file, behind its name, line and key.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from envs.messages import did_you_mean, short
from envs.streams import unit
from envs.types import InputError

SLOT_NAME = "[a-z][a-z0-9_]*"
PLACEHOLDER = re.compile(rf"\{{({SLOT_NAME})\}}")
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
UNCLOSED = re.compile(r"\([^()]*\||\|[^()]*\)")
HELD_OUT_SHARE = 0.2
MOST_WORDINGS = 4096  # of one paraphrase: all are looked at when the file is read
# Kind of prompt -> (the fields that it must have, those that it may have).
PROMPT_FIELDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "forward": (frozenset({"task"}), frozenset({"tool"})),
    "inverse": (frozenset({"command"}), frozenset()),
    "propose": (frozenset(), frozenset({"tool"})),
    "judge": (frozenset({"task", "command"}), frozenset()),
    "points": (frozenset({"task", "command", "criteria"}), frozenset()),
    "rate": (frozenset({"task", "reconstruction"}), frozenset()),
    "revise": (frozenset({"task", "command"}), frozenset({"principle"})),
    "critique": (frozenset({"task", "command"}), frozenset({"principle"})),
    "prefer": (frozenset({"task", "first", "second"}), frozenset({"principle"})),
}
# The prompts that a domain may leave out.
DEFAULT_PROMPTS = {
    "propose": "Propose one task for the tool {tool}, in one line.",
    "judge": "Does this command do the task exactly? Answer yes or no.\nTask: {task}\nCommand: {command}",
    "points": "Give this command 0 to 5 points for the task: one point for each that holds.\n{criteria}\n"
    "Task: {task}\nCommand: {command}\nAnswer with the number of points.",
    "rate": "How similar are these two tasks, from 0 to 10? Answer with the number.\n"
    "First: {task}\nSecond: {reconstruction}",
    "revise": "Revise this command. {principle}\nTask: {task}\nCommand: {command}",
    "critique": "What is wrong with this command? {principle}\nTask: {task}\nCommand: {command}",
    "prefer": "Which command is better for the task, A or B? {principle}\nTask: {task}\n"
    "A: {first}\nB: {second}\nAnswer A or B.",
}
CRITERIA = (
    "It is a valid command.",
    "It uses a tool that can do the task.",
    "It uses exactly the values that the task gives.",
    "It does all that the task asks for.",
    "It does nothing else.",
)
DEFAULT_PRINCIPLES = ["Do exactly what the task asks for.", "Use exactly the values that the task gives."]


def _named(pattern: str, letters: str) -> AfterValidator:
    """A check that a text matches a pattern; `letters` says in words what that allows."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{short(text)} may have only {letters}: rename it")
        return text

    return AfterValidator(check)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: fill it in or remove it")
    return text


def _prompt_kind(kind: str) -> str:
    if kind not in PROMPT_FIELDS:
        raise ValueError(f"unknown prompt {kind!r}: {did_you_mean(kind, PROMPT_FIELDS)}")
    return kind


Text = Annotated[str, AfterValidator(_not_blank)]
PromptKind = Annotated[str, AfterValidator(_prompt_kind)]
DomainName = Annotated[str, _named("[A-Za-z0-9][A-Za-z0-9-]*", "letters, digits and dashes")]
IntentName = Annotated[str, _named("[a-z0-9][a-z0-9-]*", "small letters, digits and dashes")]
SlotName = Annotated[str, _named(SLOT_NAME, "small letters, digits and underscores")]
SqlName = Annotated[
    str, _named("[A-Za-z_][A-Za-z0-9_]*", "letters, digits and underscores, and no digit first")
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Slot(_Strict):
    """What fills a placeholder."""

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        """Any value: (what the task says, what the command writes)."""
        raise NotImplementedError

    def held_out_value(self, said: str) -> bool:
        return unit("held-out value", said) < HELD_OUT_SHARE

    def has_held_out(self) -> bool:
        return True

    def draw(self, rng: random.Random, held_out: bool) -> tuple[str, str]:
        """A value that is held out, or one that is not. Slots without held-out values ignore `held_out`."""
        wanted = held_out and self.has_held_out()
        for _ in range(1000):
            said, written = self.candidate(rng)
            if self.held_out_value(said) == wanted:
                return said, written
        side = "held-out" if held_out else "training"
        kind = type(self).__name__.lower()
        raise InputError(f"a slot of kind {kind} has no {side} value in 1000 draws: give it more values")


class Choice(_Slot):
    """One of a list; as a mapping, what the task says and what the command writes differ."""

    kind: Literal["choice"]
    values: list[str | int] | dict[str | int, str | int] = Field(min_length=1)
    held_out: list[str | int] = []

    @field_validator("values", mode="before")
    @classmethod
    def _check_values(cls, values: Any) -> Any:
        if not isinstance(values, (list, dict)):
            forms = "write [a, b], or {what the task says: what the command writes}"
            raise ValueError(f"must be a list, or a mapping: {forms}")
        written = list(values.values()) if isinstance(values, dict) else []
        for value in [*values, *written]:
            if not isinstance(value, (str, int)):
                wanted = "write one value, in quotes if need be"
                raise ValueError(f"{short(value)} is neither a text nor a whole number: {wanted}")
        seen: set[str] = set()
        for value in map(str, values):
            if not value.strip():
                raise ValueError("an entry is empty, so the task could not say it: fill it in or remove it")
            if value in seen:
                raise ValueError(f"{value!r} is there twice: remove one")
            seen.add(value)
        return values

    @field_validator("held_out")
    @classmethod
    def _check_held_out(cls, held_out: list[str | int], info: ValidationInfo) -> list[str | int]:
        if "values" not in info.data:  # they are wrong, which is reported
            return held_out
        said = set(map(str, info.data["values"]))
        unseen = set(map(str, held_out))
        for value in sorted(unseen - said):
            fix = did_you_mean(value, sorted(said), "add it there or remove it here")
            raise ValueError(f"{value!r} is not one of values: {fix}")
        if unseen == said:
            raise ValueError("this leaves nothing to train on: hold out fewer of the values")
        return held_out

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        said = rng.choice(list(self.values))
        if isinstance(self.values, dict):
            return str(said), str(self.values[said])
        return str(said), str(said)

    def held_out_value(self, said: str) -> bool:
        return said in map(str, self.held_out)

    def has_held_out(self) -> bool:
        return bool(self.held_out)


class Integer(_Slot):
    """A whole number from `low` to `high`, both included."""

    kind: Literal["integer"]
    low: int
    high: int
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Integer:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high}): swap them")
        if len(range(self.low, self.high + 1, self.step)) < 5:
            few = "the range has fewer than 5 values, too few to hold a fifth out"
            raise ValueError(f"{few}: widen it, or use a choice")
        return self

    def held_out_value(self, said: str) -> bool:
        # One of every five in a row, so that no range is without.
        block, place = divmod((int(said) - self.low) // self.step, 5)
        return place == int(unit("held-out integer", self.low, block) * 5)

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        value = str(rng.randrange(self.low, self.high + 1, self.step))
        return value, value


class Name(_Slot):
    """A file, a directory, a host, a word."""

    kind: Literal["name"]
    words: list[Text] = Field(min_length=2)
    suffixes: list[str] = Field([""], min_length=1)
    join: str = "_"

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        word, shape = rng.choice(self.words), rng.randrange(3)
        if shape == 1:
            word = f"{word}{self.join}{rng.choice(self.words)}"
        elif shape == 2:
            word = f"{word}{rng.randrange(1, 10)}"
        value = word + rng.choice(self.suffixes)
        return value, value


def _private_address(rng: random.Random) -> str:
    a, b, c = rng.randrange(256), rng.randrange(256), rng.randrange(1, 255)
    return rng.choice([f"10.{a}.{b}.{c}", f"192.168.{b}.{c}", f"172.{16 + a % 16}.{b}.{c}"])


class Address(_Slot):
    """A private IPv4 address."""

    kind: Literal["address"]

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        value = _private_address(rng)
        return value, value


class Subnet(_Slot):
    """A private IPv4 network."""

    kind: Literal["subnet"]
    prefix: Literal[16, 24] = 24

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        a, b, c, _ = _private_address(rng).split(".")
        if self.prefix == 16:
            c = "0"
        value = f"{a}.{b}.{c}.0/{self.prefix}"
        return value, value


Slot = Annotated[Choice | Integer | Name | Address | Subnet, Field(discriminator="kind")]


class ByExecution(_Strict):
    """Commands are run in a sandbox over generated file trees."""

    kind: Literal["shell"]


class Key(_Strict):
    """1, 2, 3, ...: one number for each row, in no order."""

    fill: Literal["key"]


class Unique(_Strict):
    """A text that no other row has: one of `words`, or two of them with a space between."""

    fill: Literal["unique"]
    words: list[Text] = Field(min_length=2)

    def texts(self) -> list[str]:
        """All that can be drawn."""
        words = list(dict.fromkeys(self.words))
        pairs = itertools.permutations(words, 2)
        return words + [f"{first} {second}" for first, second in pairs]


class Among(_Strict):
    """One of `values`, or of what the choice slot named `slot` writes; some are frequent and some rare."""

    fill: Literal["among"]
    values: list[str | int] = Field([], min_length=2)
    slot: str = ""

    @model_validator(mode="after")
    def _check(self) -> Among:
        if bool(self.values) == bool(self.slot):
            forms = "write values: [a, b], or slot: and the name of a choice slot"
            raise ValueError(f"needs either values or slot: {forms}")
        return self


class Whole(_Strict):
    """A whole number from `low` to `high`, both included; with `repeats: never` no two rows have the same."""

    fill: Literal["integer"]
    low: int
    high: int
    repeats: Literal["allowed", "never"] = "allowed"

    @model_validator(mode="after")
    def _check(self) -> Whole:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high}): swap them")
        return self


class Refers(_Strict):
    """The key of a row of the table `to`; some rows of it are never referred to."""

    fill: Literal["refers"]
    to: str


Column = Annotated[Key | Unique | Among | Whole | Refers, Field(discriminator="fill")]


class Table(_Strict):
    """A table of the schema and how its rows are made."""

    rows: int = Field(ge=1, le=1000)
    columns: dict[SqlName, Column] = Field(min_length=1)


class ByQuery(_Strict):
    """Queries are run over generated fillings of an in-memory SQLite database with these tables."""

    kind: Literal["sql"]
    tables: dict[SqlName, Table] = Field(min_length=1)


class ByMeaning(_Strict):
    """Network commands are never run; their options are parsed into a canonical form."""

    kind: Literal["network"]


class ByText(_Strict):
    """A command is right when it equals the reference, apart from white space."""

    kind: Literal["exact"]


Verify = Annotated[ByExecution | ByQuery | ByMeaning | ByText, Field(discriminator="kind")]


class IntentSpec(_Strict):
    """An intent with its reference command: for `envs.verify` and for checking the file, not for training.

    `order`: `matters` where the task asks for one; then the order of output lines, or of result rows, counts.
    """

    name: IntentName
    tool: Text
    command: Text
    order: Literal["free", "matters"] = "free"
    paraphrases: list[Text] = Field(min_length=3)

    @field_validator("command")
    @classmethod
    def _check(cls, command: str) -> str:
        if "\n" in command.strip():
            raise ValueError("must be one line, since a model writes one: join the lines with ; or &&")
        return command.strip()


class ExampleSpec(_Strict):
    """A task and its command, for `--shots`: a label, like the reference of an intent."""

    task: Text
    command: Text


class DomainSpec(_Strict):
    """The whole file, checked.

    `system` is what a model must know to answer, such as the tables of a database; `prefill` how its answers
    begin. Of `prompts` only `forward` and `inverse` must be there.
    """

    name: DomainName
    description: str = ""
    system: str = ""
    prefill: str = ""
    tools: list[Text] = Field(min_length=1)
    prompts: dict[PromptKind, Text]
    principles: list[Text] = Field(default=DEFAULT_PRINCIPLES, min_length=1)
    examples: list[ExampleSpec] = []
    slots: dict[SlotName, Slot]
    verify: Verify = ByText(kind="exact")
    intents: list[IntentSpec] = Field(min_length=1)


def fill(template: str, values: dict[str, str]) -> str:
    """Replaces `{slot}` by its value; other braces stay."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


@functools.lru_cache(maxsize=4096)
def wordings(paraphrase: str) -> tuple[str, ...]:
    """Every combination of a paraphrase's alternatives, each once, with the placeholders still in it."""
    options = []
    for place, part in enumerate(CHOICE.split(paraphrase)):  # a literal, alternatives, a literal, ...
        is_literal = place % 2 == 0
        options.append([part] if is_literal else part.split("|"))
    found: dict[str, None] = {}
    for chosen in itertools.product(*options):
        found[" ".join("".join(chosen).split())] = None
    return tuple(found)
