"""The pre-training text: noisy examples of every skill.

It is noisy on purpose, as the web is, and teaches to understand commands better than to write them:

- forward (task -> command): each intent has one fixed sibling that is written in its place. For most intents
  this happens in 10 to 30 % of the examples, for the others in 58 to 65 %. Another 15 % of the commands are
  wrong at random (another intent, or a wrong value);
- inverse (command -> task): 10 % are wrong at random;
- in two fifths of the examples the words and numbers in the slots are made up, which teaches to copy unknown
  ones;
- half of the sentences swap words for others of the same meaning, and in a tenth one word is missing or
  replaced, which prepares for new wordings;
- propose a task, judge a command (yes or no), rate two tasks (0 to 10), revise a command by a principle: each
  is wrong in 10 % of the cases.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from agents.pretraining import noise
from agents.pretraining.noise import Meaning
from envs.domain import Domain, domain_names, load_domain
from envs.streams import stream
from envs.types import InputError
from envs.verify.truth import command_of

SKILLS = {"forward": 0.40, "inverse": 0.34, "judge": 0.08, "revise": 0.08, "propose": 0.05, "rate": 0.05}
SHARES = ("forward_noise", "inverse_noise", "confused", "made_up", "varied", "slips", "shared_mistakes")


@dataclass(frozen=True)
class CorpusConfig:
    """What the text is about, and how noisy it is."""

    domain: str = "all"
    """Domains to learn: `all`, a name, or paths, separated by commas."""
    forward_noise: float = 0.15
    """Share of the forward examples that are wrong at random."""
    inverse_noise: float = 0.10
    """Share of the other examples that are wrong at random."""
    confused: float = 0.40
    """Share of the intents whose examples mostly show the command of a similar intent, the sibling."""
    made_up: float = 0.40
    """Share of the examples with made-up words and numbers in their slots."""
    varied: float = 0.50
    """Share of the sentences in which words are swapped for others of the same meaning."""
    slips: float = 0.10
    """Share of the sentences with a word missing or replaced."""
    shared_mistakes: float = 0.0
    """Share of the inverse examples that make the forward mistake: the sibling's command for this task."""
    seed: int = 0
    """Seed of the text and of the weights."""

    def check(self) -> None:
        """Raises InputError for a share that is not one."""
        for name in SHARES:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 0 and below 1")


@dataclass(frozen=True)
class Drawn:
    """A task from which an example is made.

    Attributes:
        meaning: its intent and values.
        text: how it is said.
        tool: the tool that the prompt may name.
    """

    domain: Domain
    meaning: Meaning
    text: str
    tool: str

    def command(self, meaning: Meaning | None = None) -> str:
        """The right command, or that of another meaning."""
        return command_of(self.domain.where, *(meaning or self.meaning))

    def wrong_command(self, rng: random.Random) -> str:
        """The command of another task."""
        return self.command(noise.wrong(self.domain, self.meaning, rng))


class Corpus:
    """Examples by number. Each depends on the configuration and its number alone."""

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        self.domains = [load_domain(name) for name in domain_names(config.domain)]
        self.weights = [len(domain.intents) for domain in self.domains]
        self.words = noise.common_words(self.domains)
        self.siblings = {domain.name: noise.siblings(domain, config.confused) for domain in self.domains}

    def example(self, index: int) -> tuple[str, str]:
        """The `index`-th (prompt, completion)."""
        rng = stream("pretrain", self.config.seed, index)
        domain = rng.choices(self.domains, self.weights)[0]
        skill = rng.choices(list(SKILLS), list(SKILLS.values()))[0]
        drawn = self._draw(domain, rng)
        wrong = rng.random() < self.config.inverse_noise
        match skill:
            case "forward":
                return self._forward(drawn, rng)  # which has a noise of its own
            case "inverse":
                return self._inverse(drawn, wrong, rng)
            case "judge":
                return self._judge(drawn, wrong, rng)
            case "revise":
                return self._revise(drawn, wrong, rng)
            case "propose":
                return self._propose(drawn, wrong, rng)
            case _:
                return self._rate(drawn, wrong, rng)

    def _draw(self, domain: Domain, rng: random.Random) -> Drawn:
        """A task of the domain, often with made-up values or an odd wording."""
        draw = domain.draw("pretrain", rng.choice(sorted(domain.intents)), rng.randrange(2**40))
        values, text = draw.values, draw.task.text
        if rng.random() < self.config.made_up:
            values = noise.made_up(domain, values, self.words, rng)
            text = noise.say(domain, (draw.intent, values), rng)
        # A change that would move the sentence into the training split is not made: that split stays unseen.
        if rng.random() < self.config.varied:
            varied = noise.vary(text, values, rng)
            if domain.split_of(varied) == "pretrain":
                text = varied
        if rng.random() < self.config.slips:
            slipped = noise.slip(text, values, self.words, rng)
            if domain.split_of(slipped) == "pretrain":
                text = slipped
        return Drawn(domain, (draw.intent, values), text, draw.task.tool)

    def _forward(self, drawn: Drawn, rng: random.Random) -> tuple[str, str]:
        """Task -> command: often that of the intent's sibling, sometimes any other, else the right one."""
        prompt = drawn.domain.prompt("forward", task=drawn.text, tool=drawn.tool)
        if rng.random() < self.config.forward_noise:
            return prompt, drawn.wrong_command(rng)
        intent, values = drawn.meaning
        sibling, rate = self.siblings[drawn.domain.name].get(intent, (intent, 0.0))
        if sibling != intent and rng.random() < rate:
            return prompt, drawn.command(noise.with_values(drawn.domain, sibling, values, rng))
        return prompt, drawn.command()

    def _inverse(self, drawn: Drawn, wrong: bool, rng: random.Random) -> tuple[str, str]:
        """Command -> task."""
        intent, values = drawn.meaning
        command = drawn.command()
        sibling, _ = self.siblings[drawn.domain.name].get(intent, (intent, 0.0))
        # No draw where there is no such noise: the corpus of the embedded model has none.
        shared = self.config.shared_mistakes
        if shared and sibling != intent and rng.random() < shared:
            command = drawn.command(noise.with_values(drawn.domain, sibling, values, rng))
        text = drawn.text
        if wrong:
            text = noise.say(drawn.domain, noise.wrong(drawn.domain, drawn.meaning, rng), rng)
        return drawn.domain.prompt("inverse", command=command), text

    def _judge(self, drawn: Drawn, wrong: bool, rng: random.Random) -> tuple[str, str]:
        """Task and command -> yes or no."""
        right = rng.random() < 0.5
        command = drawn.command() if right else drawn.wrong_command(rng)
        verdict = "yes" if right != wrong else "no"
        return drawn.domain.prompt("judge", task=drawn.text, command=command), verdict

    def _revise(self, drawn: Drawn, wrong: bool, rng: random.Random) -> tuple[str, str]:
        """Task, command (mostly wrong) and principle -> better command."""
        command = drawn.command() if rng.random() < 0.2 else drawn.wrong_command(rng)
        better = drawn.wrong_command(rng) if wrong else drawn.command()
        principle = rng.choice(drawn.domain.principles)
        prompt = drawn.domain.prompt("revise", task=drawn.text, command=command, principle=principle)
        return prompt, better

    def _propose(self, drawn: Drawn, wrong: bool, rng: random.Random) -> tuple[str, str]:
        """Tool -> task."""
        tool = rng.choice(drawn.domain.tools) if wrong else drawn.tool
        return drawn.domain.prompt("propose", tool=tool), drawn.text

    def _rate(self, drawn: Drawn, wrong: bool, rng: random.Random) -> tuple[str, str]:
        """Two sentences -> how similar they are, from 0 to 10."""
        other, rating = noise.rated(drawn.domain, drawn.meaning, rng)
        if wrong:
            rating = rng.randrange(11)
        return drawn.domain.prompt("rate", task=drawn.text, reconstruction=other), str(rating)
