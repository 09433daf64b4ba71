"""A YAML file -> Domain: tasks in words, prompts, and splits that never mix. docs/DOMAINS.md has the schema.

The reference commands are checked when the file is read, then dropped: a `Domain` cannot tell what is right.
Only `envs.verify` reads them again, from the same file.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass

from envs.grammar import CHOICE, DEFAULT_PROMPTS, PLACEHOLDER, DomainSpec, fill, wordings
from envs.schema import EMBEDDED, fault, load_spec
from envs.streams import stream, unit
from envs.types import InputError, Task

SPLITS = ("pretrain", "train", "heldout")


@dataclass(frozen=True)
class Intent:
    """What training may know of an intent: how it is asked for. `slots`: names, in the order of drawing."""

    name: str
    tool: str
    slots: tuple[str, ...]
    paraphrases: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """A task with all that made it, for `envs.verify` and pre-training. `values`: slot -> (said, written)."""

    task: Task
    intent: str
    paraphrase: int
    values: dict[str, tuple[str, str]]


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
        self.runs_shell = spec.verify.kind == "shell"
        self.principles = tuple(spec.principles)
        self.system, self.prefill = spec.system.strip(), spec.prefill
        self.prompts: dict[str, str] = {**DEFAULT_PROMPTS, **spec.prompts}
        self.slots = spec.slots
        self.intents = {
            intent.name: Intent(
                intent.name,
                intent.tool,
                tuple(sorted(set(PLACEHOLDER.findall(intent.command)))),
                tuple(intent.paraphrases),
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
        """`count` different tasks of a split, intents in turn in random order; `stream_parts` as in `stream`.

        Repeats a sentence only where an intent has few: when 20 draws of it bring none that is new.
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
            if split == "heldout" or self.split_of(text) == split:
                break
        else:
            raise InputError(
                f"{self.where}: intent {intent!r} has no {split} task in 1000 draws: "
                "give it more wordings or more values"
            )
        task = Task(f"{split}/{intent}/{index}", self.where, text, about.tool)
        return Draw(task, intent, paraphrase, values)

    def say(
        self, intent: str, paraphrase: int, values: dict[str, tuple[str, str]], rng: random.Random
    ) -> str:
        """One wording of a paraphrase with these values."""
        text = CHOICE.sub(
            lambda match: rng.choice(match[1].split("|")), self.intents[intent].paraphrases[paraphrase]
        )
        return " ".join(fill(text, {name: said for name, (said, _) in values.items()}).split())

    @staticmethod
    def split_of(text: str) -> str:
        """Which of `train` and `pretrain` a sentence with no held-out part belongs to."""
        return "train" if unit("split", text) < 0.5 else "pretrain"

    def _values(
        self, about: Intent, split: str, rng: random.Random
    ) -> tuple[int, dict[str, tuple[str, str]]]:
        last = len(about.paraphrases) - 1
        holdable = [name for name in about.slots if self.slots[name].has_held_out()]
        unseen_paraphrase = split == "heldout" and (not holdable or rng.random() < 0.5)
        unseen = (
            set(rng.sample(holdable, rng.randint(1, len(holdable))))
            if split == "heldout" and not unseen_paraphrase
            else set()
        )
        values = self._different(about, unseen, rng)
        return (last if unseen_paraphrase else rng.randrange(last)), values

    def _different(self, about: Intent, unseen: set[str], rng: random.Random) -> dict[str, tuple[str, str]]:
        """A value for each slot, no two the same; those of `unseen` are held-out ones."""
        for _ in range(1000):
            values = {name: self.slots[name].draw(rng, name in unseen) for name in about.slots}
            if len({said for said, _ in values.values()}) == len(values):
                return values
        side = f" where {' and '.join(sorted(unseen))} must be held-out ones" if unseen else ""
        raise InputError(
            f"{self.where}: the slots of intent {about.name!r} do not have enough different values{side}: "
            "give them more"
        )

    def try_out(self, intent: str) -> None:
        """Draws from every split and every slot that can be held out, so that too few values show at once.

        Raises:
            InputError: something cannot be drawn.
        """
        about = self.intents[intent]
        holdable = [name for name in about.slots if self.slots[name].has_held_out()]
        for size in sorted({0, 1, 2, len(holdable)}):
            for unseen in itertools.combinations(holdable, size):
                self._different(about, set(unseen), stream("try", self.name, intent, *unseen))
        for split in SPLITS:
            for index in range(3):
                self.draw(split, intent, index)

    def recognise(self, intent: str, values: dict[str, tuple[str, str]], text: str) -> bool:
        """Whether `text` says the intent with these values in any of its paraphrases, held-out one included.

        Letter case and the amount of white space do not matter.
        """
        said, wanted = {name: said for name, (said, _) in values.items()}, text.lower().split()
        return any(
            fill(wording, said).lower().split() == wanted
            for paraphrase in self.intents[intent].paraphrases
            for wording in wordings(paraphrase)
        )


def domain_names(where: str) -> list[str]:
    """`all` -> the embedded domains; `shell,my.yaml` -> both, each once. Each is for `load_domain`.

    Raises:
        InputError: there is no name in it.
    """
    parts = [part.strip() for part in where.split(",") if part.strip()]
    if not parts:
        raise InputError(
            f"--domain {where!r}: name at least one domain: "
            f"all, {', '.join(EMBEDDED)}, or the path of a YAML file"
        )
    return list(dict.fromkeys(name for part in parts for name in (EMBEDDED if part == "all" else (part,))))


@functools.lru_cache(maxsize=32)
def load_domain(where: str) -> Domain:
    """Reads and checks a domain.

    Raises:
        InputError: the file is missing or has a mistake: one line with file, line, key and fix.
    """
    spec = load_spec(where)
    domain = Domain(where, spec)
    for name, slot in spec.slots.items():
        for held_out in (False, True):
            try:
                slot.draw(stream("try", name, held_out), held_out)
            except InputError as error:
                raise fault(where, ("slots", name), str(error)) from None
    for position, intent in enumerate(domain.intents):
        try:
            domain.try_out(intent)
        except InputError as error:
            raise fault(where, ("intents", position), str(error).removeprefix(f"{where}: ")) from None
    return domain
