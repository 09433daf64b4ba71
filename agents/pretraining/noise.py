"""How the pre-training text goes wrong: other tasks, other values, other words.

Every function draws from the random stream that it is given. The order of the draws is part of the corpus,
whose hash the card names: another order makes another model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from envs.domain import Domain, Intent
from envs.grammar import PLACEHOLDER, Choice, Name
from envs.streams import unit

Values = dict[str, tuple[str, str]]  # slot -> (what the task says, what the command writes)
Meaning = tuple[str, Values]  # an intent and its values
WORD = re.compile(r"[A-Za-z]{2,}")
SAME_MEANING = [
    ["show", "print", "display", "list", "give", "give me", "find", "get", "i need", "show me"],
    ["check", "test", "see"],
    ["run", "do", "make"],
    ["over", "above", "more than", "higher than"],
    ["under", "below", "less than", "lower than"],
    ["older than", "aged over", "over the age of"],
    ["younger than", "aged under", "under the age of"],
    ["each", "every"],
    ["at most", "up to", "no more than"],
    ["only", "just"],
    ["different", "distinct"],
    ["contain", "have"],
    ["route", "path"],
    ["whether", "if"],
    ["work out", "compute", "find"],
    ["highest", "maximum"],
    ["lowest", "minimum"],
    ["the host", "the machine", "the server"],
]


def _any_of_them() -> re.Pattern[str]:
    """Finds each of these words and phrases, the longest first."""
    words: set[str] = set()
    for group in SAME_MEANING:
        words.update(group)
    alternatives = "|".join(sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w.])(?:{alternatives})(?![\w.])")


SWAPPED = _any_of_them()


# Another task.


def siblings(domain: Domain, strongly_confused: float) -> dict[str, tuple[str, float]]:
    """intent -> (the one intent that it is confused with, how often).

    Args:
        strongly_confused: the share of the intents that are confused in most cases.
    """
    order = sorted(domain.intents, key=lambda name: unit("confusion", domain.name, name))
    # Strong or mild, nothing between: at 0.3 to 0.5, greedy decoding would be right and most samples wrong.
    strong = round(strongly_confused * len(order))
    rates = [*_spread(0.58, 0.65, strong), *_spread(0.10, 0.30, len(order) - strong)]
    rate_of = dict(zip(order, rates, strict=True))
    found = {}
    for name, intent in domain.intents.items():
        others = [other for other in domain.intents.values() if other.name != name]
        if others:
            found[name] = (_most_alike(domain, intent, others), rate_of[name])
    return found


def _spread(low: float, high: float, count: int) -> list[float]:
    """`count` numbers from high to low, evenly."""
    return [high - (high - low) * rank / max(1, count - 1) for rank in range(count)]


def _most_alike(domain: Domain, intent: Intent, others: Sequence[Intent]) -> str:
    """The intent with the same tool and the most slots in common; a hash decides between equals."""

    def likeness(other: Intent) -> tuple[bool, int, float]:
        shared = set(other.slots) & set(intent.slots)
        not_shared = set(other.slots) ^ set(intent.slots)
        decides = unit("sibling", domain.name, intent.name, other.name)
        return other.tool == intent.tool, len(shared) - len(not_shared), decides

    return max(others, key=likeness).name


def with_values(domain: Domain, intent: str, values: Values, rng: random.Random) -> Meaning:
    """Another intent, with this task's values where it has the same slots."""
    fresh = domain.draw("pretrain", intent, rng.randrange(2**40)).values
    return intent, {name: values.get(name, value) for name, value in fresh.items()}


def wrong(domain: Domain, meaning: Meaning, rng: random.Random) -> Meaning:
    """Another task: one value changed, another intent of the same tool, or anything of the domain."""
    intent, values = meaning
    kind = rng.random()
    if kind < 0.5:
        fresh = domain.draw("pretrain", intent, rng.randrange(2**40)).values
        changed = sorted(name for name in values if fresh[name] != values[name])
        if changed:
            name = rng.choice(changed)
            return intent, {**values, name: fresh[name]}
    others = [other for other in sorted(domain.intents) if other != intent] or [intent]
    if kind < 0.8:
        tool = domain.intents[intent].tool
        same_tool = [other for other in others if domain.intents[other].tool == tool]
        return with_values(domain, rng.choice(same_tool or others), values, rng)
    return with_values(domain, rng.choice(others), {}, rng)


def rated(domain: Domain, meaning: Meaning, rng: random.Random) -> tuple[str, int]:
    """Another sentence, and how similar it is to this task from 0 to 10.

    The same task is 10, each other value costs 2 (4 is the least), and another intent is 4 at most.
    """
    intent, values = meaning
    other = meaning if rng.random() < 0.35 else wrong(domain, meaning, rng)
    text = say(domain, other, rng)
    other_intent, other_values = other
    if other_intent == intent:
        differing = sum(other_values[name] != values[name] for name in values)
        return text, max(4, 10 - 2 * differing)
    same_tool = domain.intents[other_intent].tool == domain.intents[intent].tool
    shared = sum(values.get(name) == value for name, value in other_values.items())
    return text, min(4, 2 * same_tool + shared)


# Other values.


def made_up(domain: Domain, values: Values, words: Sequence[str], rng: random.Random) -> Values:
    """Each value made of words or numbers that no slot lists, where its slot allows it."""
    return {slot: _made_up(domain, slot, value, words, rng) for slot, value in values.items()}


def _made_up(
    domain: Domain, slot: str, value: tuple[str, str], words: Sequence[str], rng: random.Random
) -> tuple[str, str]:
    """Other words of the same shape, or another number; the suffix stays. Never a held-out value."""
    about = domain.slots[slot]
    said, written = value
    if said != written or not isinstance(about, Choice | Name):
        return value
    suffix = ""
    if isinstance(about, Name):
        suffix = max((ending for ending in about.suffixes if said.endswith(ending)), key=len)
    stem = said[: len(said) - len(suffix)]

    def another(match: re.Match[str]) -> str:
        return _word_like(match[0], words, rng)

    for _ in range(20):
        if stem.isdigit():
            new = str(rng.randrange(1, 10 ** rng.randint(2, 5))) + suffix
        else:
            new = WORD.sub(another, stem) + suffix
        if not about.held_out_value(new):
            return new, new
    return value


def _word_like(model: str, words: Sequence[str], rng: random.Random) -> str:
    """A word with a capital if `model` has one: pronounceable nonsense, or one of `words`."""
    word = invent(rng) if rng.random() < 0.5 else rng.choice(words)
    return word.capitalize() if model[0].isupper() else word


def invent(rng: random.Random) -> str:
    """A pronounceable word that means nothing."""
    word = ""
    for _ in range(rng.choice([1, 2, 2, 3])):
        word += rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou")
        word += rng.choice(["", "", "n", "r", "s", "l"])
    return word


# Other words.


def common_words(domains: Sequence[Domain]) -> list[str]:
    """Words of the wordings, for made-up values and slips, but none of the last, held-out paraphrases."""
    words: set[str] = set()
    for domain in domains:
        for intent in domain.intents.values():
            for text in intent.paraphrases[:-1]:
                words.update(WORD.findall(PLACEHOLDER.sub(" ", text)))
    return sorted(word for word in words if word.islower())


def say(domain: Domain, meaning: Meaning, rng: random.Random) -> str:
    """A sentence of the `pretrain` split for this meaning; if 50 wordings have none, for its intent alone."""
    intent, values = meaning
    for _ in range(50):
        wording = rng.randrange(len(domain.intents[intent].paraphrases) - 1)
        text = domain.say(intent, wording, values, rng)
        if domain.split_of(text) == "pretrain":
            return text
    return domain.draw("pretrain", intent, rng.randrange(2**40)).task.text


def vary(text: str, values: Values, rng: random.Random) -> str:
    """The sentence with some of its words swapped for others of the same meaning."""
    said = _said(values)

    def swap(match: re.Match[str]) -> str:
        if rng.random() < 0.4 or said & set(match[0].split()):
            return match[0]
        group = next(group for group in SAME_MEANING if match[0] in group)
        return rng.choice(group)

    return SWAPPED.sub(swap, text)


def slip(text: str, values: Values, words: Sequence[str], rng: random.Random) -> str:
    """The sentence with one word of its wording missing or replaced."""
    said = _said(values)
    sentence = text.split()
    places = [place for place, word in enumerate(sentence) if word.isalpha() and word not in said]
    if not places:
        return text
    place = rng.choice(places)
    sentence[place : place + 1] = [rng.choice(words)] if rng.random() < 0.5 else []
    return " ".join(sentence)


def _said(values: Values) -> set[str]:
    """The words of the values: those must not change."""
    words: set[str] = set()
    for said, _ in values.values():
        words.update(said.split())
    return words
