"""A YAML file -> Domain: tasks in words, prompts, and splits that never mix. The schema is described in docs/DOMAINS.md.

The reference commands of the file are checked when it is read and then dropped: a `Domain` cannot tell what is right.
Only `envs.verify` reads them again, from the same file.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from envs.types import InputError, Task

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "domains"
EMBEDDED = ("network", "shell", "sql")
SPLITS = ("pretrain", "train", "heldout")
PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
PROMPT_FIELDS = {
    "forward": ({"task"}, {"tool"}),
    "inverse": ({"command"}, set()),
    "propose": (set(), {"tool"}),
    "judge": ({"task", "command"}, set()),
    "rate": ({"task", "reconstruction"}, set()),
    "revise": ({"task", "command"}, {"principle"}),
}
HELD_OUT_SHARE = 0.2


def unit(*parts: object) -> float:
    """A uniform number in [0, 1) that depends on the parts alone, on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def stream(*parts: object) -> random.Random:
    """The random stream of (seed, cycle, purpose, index, ...): equal parts, equal numbers."""
    return random.Random("\x1f".join(map(str, parts)))


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
        raise InputError(f"no {side} value of a slot {self!r} was found in 1000 draws: give it more values")


class Choice(_Slot):
    """One of a list; as a mapping, what the task says and what the command writes differ."""

    kind: Literal["choice"]
    values: list[str | int] | dict[str | int, str | int] = Field(min_length=1)
    held_out: list[str | int] = []

    @model_validator(mode="after")
    def _check(self) -> Choice:
        said = {str(value) for value in self.values}
        if unknown := [value for value in self.held_out if str(value) not in said]:
            raise ValueError(f"held_out has {unknown[0]!r}, which is not one of values: add it there or drop it here")
        if len(said) != len(self.values):
            raise ValueError("values repeats an entry: drop one")
        if len(self.held_out) >= len(said):
            raise ValueError("held_out leaves nothing to train on: hold out fewer values")
        return self

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
        if len(range(self.low, self.high + 1, self.step)) < 5:
            raise ValueError("the range has fewer than 5 values, too few to hold a fifth out: widen it, or use a choice")
        return self

    def held_out_value(self, said: str) -> bool:
        block, place = divmod((int(said) - self.low) // self.step, 5)  # one of every five in a row, so that no range is without
        return place == int(unit("held-out integer", self.low, block) * 5)

    def candidate(self, rng: random.Random) -> tuple[str, str]:
        value = str(rng.randrange(self.low, self.high + 1, self.step))
        return value, value


class Name(_Slot):
    """A file, a directory, a host, a word."""

    kind: Literal["name"]
    words: list[str] = Field(min_length=2)
    suffixes: list[str] = [""]
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


class IntentSpec(_Strict):
    """An intent as the file has it, reference command included: for `envs.verify` and for checking the file, not for training."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    tool: str
    command: str = Field(min_length=1)
    paraphrases: list[str] = Field(min_length=3)


class DomainSpec(_Strict):
    """The whole file, checked."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")
    description: str
    tools: list[str] = Field(min_length=1)
    prompts: dict[Literal["forward", "inverse", "propose", "judge", "rate", "revise"], str]
    principles: list[str] = Field(min_length=1)
    slots: dict[str, Slot]
    intents: list[IntentSpec] = Field(min_length=1)


@dataclass(frozen=True)
class Intent:
    """What training may know of an intent: how it is asked for. `slots` are names, in the order in which they are drawn."""

    name: str
    tool: str
    slots: tuple[str, ...]
    paraphrases: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """One task with everything that made it, for `envs.verify` and pre-training. `values`: slot -> (said, written)."""

    task: Task
    intent: str
    paraphrase: int
    values: dict[str, tuple[str, str]]


def fill(template: str, values: dict[str, str]) -> str:
    """Replaces `{slot}` by its value; other braces stay."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


class Domain:
    """Tasks and prompts of one YAML file.

    Args:
        where: the name of an embedded domain or the path of a YAML file; it becomes `Task.domain`.
        spec: the checked file, of which the commands are not kept.
    """

    def __init__(self, where: str, spec: DomainSpec) -> None:
        self.where = where
        self.name = spec.name
        self.tools = tuple(spec.tools)
        self.principles = tuple(spec.principles)
        self.prompts: dict[str, str] = {str(kind): text for kind, text in spec.prompts.items()}
        self.slots = spec.slots
        self.intents = {
            intent.name: Intent(
                intent.name, intent.tool, tuple(sorted(set(PLACEHOLDER.findall(intent.command)))), tuple(intent.paraphrases)
            )
            for intent in spec.intents
        }

    def prompt(self, kind: str, **fields: str) -> str:
        """The prompt `kind` (forward, inverse, propose, judge, rate, revise) with its fields filled in."""
        return fill(self.prompts[kind], fields)

    def task(self, split: str, intent: str, index: int) -> Task:
        """The `index`-th task of an intent in a split: the same on every machine."""
        return self.draw(split, intent, index).task

    def tasks(self, split: str, count: int, *stream_parts: object) -> list[Task]:
        """`count` different tasks of a split, intents in turn from a random order; `stream_parts` as in `stream`.

        Repeats a sentence only where the domain has fewer different ones than asked for.
        """
        rng = stream("tasks", self.name, split, *stream_parts)
        names = sorted(self.intents)
        tasks: list[Task] = []
        seen: set[str] = set()
        while len(tasks) < count:
            rng.shuffle(names)
            for name in names[: count - len(tasks)]:
                for _ in range(20):
                    task = self.task(split, name, rng.randrange(2**31))
                    if task.text not in seen:
                        break
                seen.add(task.text)
                tasks.append(task)
        return tasks

    def draw(self, split: str, intent: str, index: int) -> Draw:
        """The same task with its slot values, for `envs.verify` and pre-training."""
        about = self.intents[intent]
        rng = stream("draw", self.name, split, intent, index)
        for _ in range(1000):
            paraphrase, values = self._values(about, split, rng)
            text = self.say(intent, paraphrase, values, rng)
            if split == "heldout" or not about.slots or self.split_of(text) == split:
                break
        else:
            raise InputError(f"{self.where}: intent {intent!r} has no {split} task in 1000 draws: give its slots more values")
        task = Task(f"{split}/{intent}/{index}", self.where, text, about.tool)
        return Draw(task, intent, paraphrase, values)

    def say(self, intent: str, paraphrase: int, values: dict[str, tuple[str, str]], rng: random.Random) -> str:
        """One wording of a paraphrase with these values."""
        text = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), self.intents[intent].paraphrases[paraphrase])
        return " ".join(fill(text, {name: said for name, (said, _) in values.items()}).split())

    @staticmethod
    def split_of(text: str) -> str:
        """Which of `train` and `pretrain` a sentence with no held-out part belongs to."""
        return "train" if unit("split", text) < 0.5 else "pretrain"

    def _values(self, about: Intent, split: str, rng: random.Random) -> tuple[int, dict[str, tuple[str, str]]]:
        last = len(about.paraphrases) - 1
        holdable = [name for name in about.slots if self.slots[name].has_held_out()]
        unseen_paraphrase = split == "heldout" and (not holdable or rng.random() < 0.5)
        unseen = set(rng.sample(holdable, rng.randint(1, len(holdable)))) if split == "heldout" and not unseen_paraphrase else set()
        for _ in range(1000):
            values = {name: self.slots[name].draw(rng, name in unseen) for name in about.slots}
            if len({said for said, _ in values.values()}) == len(values):
                return (last if unseen_paraphrase else rng.randrange(last)), values
        raise InputError(f"{self.where}: the slots of intent {about.name!r} do not have enough different values")

    def recognise(self, intent: str, values: dict[str, tuple[str, str]], text: str) -> bool:
        """Whether `text` says the intent with these values in any of its paraphrases, held-out one included."""
        wanted = " ".join(text.lower().split())
        return any(pattern.fullmatch(wanted) for pattern in self._patterns(intent, {name: said for name, (said, _) in values.items()}))

    def _patterns(self, intent: str, said: dict[str, str]) -> Iterator[re.Pattern[str]]:
        for paraphrase in self.intents[intent].paraphrases:
            pattern, position = "", 0
            for match in CHOICE.finditer(paraphrase):
                options = "|".join(re.escape(fill(option, said)) for option in match[1].split("|"))
                pattern += re.escape(fill(paraphrase[position : match.start()], said)) + f"(?:{options})"
                position = match.end()
            pattern += re.escape(fill(paraphrase[position:], said))
            yield re.compile(re.sub(r"(?:\\ )+", r"\\s*", pattern), re.IGNORECASE)


def domain_path(where: str) -> Path:
    """The file of an embedded domain's name, or the path itself."""
    return CONFIGS / f"{where}.yaml" if where in EMBEDDED else Path(where)


def domain_names(where: str) -> list[str]:
    """`all` -> the embedded domains; `shell,my.yaml` -> both; each an argument for `load_domain`."""
    return list(EMBEDDED) if where == "all" else [part.strip() for part in where.split(",") if part.strip()]


@functools.lru_cache(maxsize=32)
def load_domain(where: str) -> Domain:
    """Reads and checks a domain.

    Raises:
        InputError: the file is missing or has a mistake; one line with the file, the line, the key and the fix.
    """
    return Domain(where, load_spec(where))


@functools.lru_cache(maxsize=32)
def load_spec(where: str) -> DomainSpec:
    """The checked file with its reference commands. Training code has no use for it and must not call it."""
    path = domain_path(where)
    if not path.is_file():
        near = difflib.get_close_matches(where, (*EMBEDDED, "all"), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join((*EMBEDDED, 'all'))}, or the path of a YAML file"
        raise InputError(f"--domain {where}: no such domain or file: {hint}")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{path}:{line}: not valid YAML: {problem}: mend or quote this line") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}:1: a domain is a mapping with the keys {', '.join(DomainSpec.model_fields)}")
    try:
        spec = DomainSpec.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(path, node, error)) from None
    for location, problem in _cross_checks(spec):
        raise InputError(f"{path}:{_line(node, location)}: {_dotted(location)}: {problem}")
    return spec


def _cross_checks(spec: DomainSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for kind, (required, optional) in PROMPT_FIELDS.items():
        if kind not in spec.prompts:
            yield ("prompts",), f"the prompt {kind!r} is missing: add it"
        found = set(PLACEHOLDER.findall(spec.prompts[kind]))  # type: ignore[index]
        if missing := sorted(required - found):
            yield ("prompts", kind), f"{{{missing[0]}}} is missing: put it where the model should see it"
        if extra := sorted(found - required - optional):
            yield ("prompts", kind), f"{{{extra[0]}}} is not known here: use {sorted(required | optional)}"
    names: set[str] = set()
    for i, intent in enumerate(spec.intents):
        if intent.name in names:
            yield ("intents", i, "name"), f"{intent.name!r} is used twice: rename one"
        names.add(intent.name)
        if intent.tool not in spec.tools:
            yield ("intents", i, "tool"), f"{intent.tool!r} is not in tools{_nearest(intent.tool, spec.tools)}: add it there"
        wanted = set(PLACEHOLDER.findall(intent.command))
        if unknown := sorted(wanted - set(spec.slots)):
            yield ("intents", i, "command"), f"{{{unknown[0]}}} is not in slots{_nearest(unknown[0], list(spec.slots))}: declare it there"
        for j, paraphrase in enumerate(intent.paraphrases):
            found = set(PLACEHOLDER.findall(paraphrase))
            if missing := sorted(wanted - found):
                yield ("intents", i, "paraphrases", j), f"{{{missing[0]}}} is in the command but not here: the task must say it"
            if extra := sorted(found - wanted):
                yield ("intents", i, "paraphrases", j), f"{{{extra[0]}}} is not in the command: drop it or use it there"


def _explain(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    first = error.errors()[0]
    location = _existing(node, first["loc"])
    key = first["loc"][-1]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = f"the key {key!r} is missing: add it"
    elif first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"])
        message = f"unknown key {key!r}{_nearest(str(key), known)}: rename or drop it"
    elif first["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        message = f"kind must be one of choice, integer, name, address, subnet: {message}"
    elif first["type"] == "too_short":
        message += ": add the missing ones"
    elif "pattern" in first["type"]:
        message = f"{first['input']!r} may have only letters, digits and dashes: rename it"
    else:
        message += f" (found {first['input']!r}): correct it"
    return f"{path}:{_line(node, location)}: {_dotted(location) or 'the file'}: {message}"


def _known_keys(location: Sequence[str | int]) -> list[str]:
    if location[0] == "intents":
        return list(IntentSpec.model_fields)
    if location[0] == "slots":
        kinds: dict[str, type[BaseModel]] = {"choice": Choice, "integer": Integer, "name": Name, "address": Address, "subnet": Subnet}
        return list(kinds[str(location[2])].model_fields)
    return list(DomainSpec.model_fields)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _dotted(location: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _child(node: Any, part: str | int) -> tuple[Any, Any] | None:
    """(node that marks the key, node of the value) of one step down, or None where the file has no such step."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _existing(node: yaml.Node | None, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """The steps of a pydantic location that the file has; the names of union members are not steps of the file."""
    found: list[str | int] = []
    for part in location:
        step = _child(node, part)
        if step is not None:
            found.append(part)
            node = step[1]
    return tuple(found)


def _line(node: Any, location: Sequence[str | int]) -> int:
    line = 1
    for part in location:
        step = _child(node, part)
        if step is None:
            break
        line = step[0].start_mark.line + 1
        node = step[1]
    return line
