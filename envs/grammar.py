"""What a domain's YAML file says, as records: slots and how they draw, paraphrases and their wordings, the specification of the file."""

from __future__ import annotations

import functools
import itertools
import random
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from envs.messages import did_you_mean, short
from envs.streams import unit
from envs.types import InputError

SLOT_NAME = "[a-z][a-z0-9_]*"
PLACEHOLDER = re.compile(rf"\{{({SLOT_NAME})\}}")
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
UNCLOSED = re.compile(r"\([^()]*\||\|[^()]*\)")
Text = Annotated[str, Field(pattern=r"\S")]
HELD_OUT_SHARE = 0.2
MOST_WORDINGS = 4096  # of one paraphrase: all are looked at when the file is read


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Slot(_Strict):
    """What fills a placeholder. `draw` gives (what the task says, what the command writes)."""

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        raise TypeError("a slot kind must say how it draws")

    def held_out_value(self, said: str) -> bool:
        return unit("held-out value", said) < HELD_OUT_SHARE

    def has_held_out(self) -> bool:
        return True

    def draw(self, rng: random.Random, held_out: bool) -> tuple[str, str]:
        """Draws a value whose hash puts it on the wanted side. Slots without held-out values ignore `held_out`."""
        for _ in range(1000):
            said, written = self.candidate(rng)
            if self.held_out_value(said) == (held_out and self.has_held_out()):
                return said, written
        side = "held-out" if held_out else "training"
        raise InputError(
            f"a slot of kind {type(self).__name__.lower()} has no {side} value in 1000 draws: give it more values"
        )


class Choice(_Slot):
    """One of a list; as a mapping, what the task says and what the command writes differ."""

    kind: Literal["choice"]
    values: list[str | int] | dict[str | int, str | int] = Field(min_length=1)
    held_out: list[str | int] = []

    @field_validator("values", mode="before")
    @classmethod
    def _check_values(cls, values: Any) -> Any:
        if not isinstance(values, (list, dict)):
            raise ValueError(
                "must be a list, or a mapping from what the task says to what the command writes: write [a, b] or {a: b}"
            )
        said = [str(value) for value in values]
        written = list(values.values()) if isinstance(values, dict) else []
        if odd := [value for value in [*values, *written] if not isinstance(value, (str, int))]:
            raise ValueError(
                f"{short(odd[0])} is neither a text nor a whole number: write one value, in quotes if need be"
            )
        if "" in map(str.strip, said):
            raise ValueError("an entry is empty, so that the task would not say it: fill it in or drop it")
        if repeated := [value for place, value in enumerate(said) if value in said[:place]]:
            raise ValueError(f"{repeated[0]!r} is there twice: drop one")
        return values

    @field_validator("held_out")
    @classmethod
    def _check_held_out(cls, held_out: list[str | int], info: ValidationInfo) -> list[str | int]:
        said = {str(value) for value in info.data.get("values", held_out)}
        if unknown := [str(value) for value in held_out if str(value) not in said]:
            fix = did_you_mean(unknown[0], sorted(said), "add it there or remove it here")
            raise ValueError(f"{unknown[0]!r} is not one of values: {fix}")
        if "values" in info.data and {str(value) for value in held_out} == said:
            raise ValueError("this leaves nothing to train on: hold out fewer of the values")
        return held_out

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        said = rng.choice(list(self.values))
        return str(said), str(self.values[said] if isinstance(self.values, dict) else said)

    def held_out_value(self, said: str) -> bool:
        return said in {str(value) for value in self.held_out}

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
            raise ValueError(
                "the range has fewer than 5 values, too few to hold a fifth out: widen it, or use a choice"
            )
        return self

    def held_out_value(self, said: str) -> bool:
        block, place = divmod(
            (int(said) - self.low) // self.step, 5
        )  # one of every five in a row, so that no range is without
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
        a, b, *rest = _private_address(rng).split(".")
        value = f"{a}.{b}.{rest[0] if self.prefix == 24 else 0}.0/{self.prefix}"
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
        return [
            *dict.fromkeys(self.words),
            *(f"{a} {b}" for a, b in itertools.permutations(dict.fromkeys(self.words), 2)),
        ]


class Among(_Strict):
    """One of `values`, or of what the choice slot named `slot` writes; some are frequent and some rare."""

    fill: Literal["among"]
    values: list[str | int] = Field([], min_length=2)
    slot: str = ""

    @model_validator(mode="after")
    def _check(self) -> Among:
        if bool(self.values) == bool(self.slot):
            raise ValueError(
                "needs either values or slot: write values: [a, b], or the name of a choice slot"
            )
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
SqlName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


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
    """A command is right when it equals the reference but for white space."""

    kind: Literal["exact"]


Verify = Annotated[ByExecution | ByQuery | ByMeaning | ByText, Field(discriminator="kind")]


class IntentSpec(_Strict):
    """An intent as the file has it, reference command included: for `envs.verify` and for checking the file, not for training.

    `order`: whether the task asks for one, so that the order of output lines (of result rows) counts.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    tool: Text
    command: Text
    order: Literal["free", "matters"] = "free"
    paraphrases: list[Text] = Field(min_length=3)

    @field_validator("command")
    @classmethod
    def _check(cls, command: str) -> str:
        if "\n" in command.strip():
            raise ValueError("must be one line, as a model writes one: join the lines with ; or &&")
        return command.strip()


class DomainSpec(_Strict):
    """The whole file, checked."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")
    description: str
    tools: list[Text] = Field(min_length=1)
    prompts: dict[Literal["forward", "inverse", "propose", "judge", "rate", "revise"], Text]
    principles: list[Text] = Field(min_length=1)
    slots: dict[Annotated[str, Field(pattern=rf"^{SLOT_NAME}$")], Slot]
    verify: Verify = ByText(kind="exact")
    intents: list[IntentSpec] = Field(min_length=1)


def fill(template: str, values: dict[str, str]) -> str:
    """Replaces `{slot}` by its value; other braces stay."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


@functools.lru_cache(maxsize=4096)
def wordings(paraphrase: str) -> tuple[str, ...]:
    """What a paraphrase can read, placeholders still in it: every combination of its alternatives, none of them twice."""
    parts = CHOICE.split(paraphrase)  # a literal, alternatives, a literal, ...
    options = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    return tuple(dict.fromkeys(" ".join("".join(chosen).split()) for chosen in itertools.product(*options)))
