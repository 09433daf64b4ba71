"""Makes the embedded pocket model: a tiny Mistral, from scratch, on a CPU, from the `pretrain` split of the domain grammars.

    python -m agents.pretrain --output my-pocket          # some 25 minutes on one core
    python -m agents.rejection_sft --model my-pocket
    python -m agents.pretrain --inverse-noise 0.9 --output noisy    # one that reads badly: configs/studies/boundary.yaml

It is a test bed for self-improvement, so its text is noisy on purpose, as the web is, and it understands better than it writes:

- forward (task -> command): each intent has one fixed sibling that is written in its place, for most intents with a probability
  of 0.10 to 0.30, for the others of 0.58 to 0.65, and 15 % of the commands are wrong at random (another intent, or a wrong value);
- inverse (command -> task): 10 % wrong at random;
- in two fifths of the examples the words and numbers in the slots are made up, so that it learns to copy what it has never seen;
- half of the sentences swap words for others of the same meaning, and in a tenth one word of the wording is missing or is another
  one, so that a new wording is no surprise;
- propose a task, judge a command (yes/no), rate two tasks (0-10), revise a command by a principle: each wrong 10 % of the time.

This is supervised learning by definition, so this command may import `envs.verify`, as evaluation may; no trainer may.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli.command import run_command
from envs.domain import Domain, domain_names, load_domain
from envs.grammar import PLACEHOLDER, Choice, Name
from envs.streams import stream, unit
from envs.types import InputError
from envs.verify.truth import command_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
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
SWAPPED = re.compile(
    rf"(?<![\w.])(?:{'|'.join(sorted({w for group in SAME_MEANING for w in group}, key=len, reverse=True))})(?![\w.])"
)
SKILLS = {"forward": 0.40, "inverse": 0.34, "judge": 0.08, "revise": 0.08, "propose": 0.05, "rate": 0.05}


@dataclass(frozen=True)
class Config:
    """Pre-train the embedded pocket model from scratch."""

    output: str = "agents/policy/embedded"
    """Folder for the weights, the tokenizer and the card."""
    domain: str = "all"
    """Domains to learn: `all`, a name, or paths, separated by commas."""
    examples: int = 340_000
    """Training examples; each is seen once."""
    batch_size: int = 64
    """Examples a step."""
    lr: float = 0.02
    """Peak learning rate of Muon for the matrices, and a fifth of it of AdamW for the rest; warm-up, then cosine to zero."""
    hidden: int = 128
    """Width."""
    layers: int = 4
    """Depth."""
    vocabulary: int = 1024
    """Tokens of the byte-level BPE."""
    forward_noise: float = 0.15
    """Share of forward examples that are wrong at random."""
    inverse_noise: float = 0.10
    """Share of the other examples that are wrong at random."""
    confused: float = 0.40
    """Share of the intents that are mostly written as their sibling."""
    made_up: float = 0.40
    """Share of the examples with made-up words and numbers in their slots."""
    varied: float = 0.50
    """Share of the sentences in which words are swapped for others of the same meaning."""
    slips: float = 0.10
    """Share of the sentences with a word missing or replaced."""
    shared_mistakes: float = 0.0
    """Share of the inverse examples that make the forward half's own mistake: the sibling's command is read as the task."""
    seed: int = 0
    """Seed of the corpus and of the weights."""

    def check(self) -> None:
        """Raises InputError for values that cannot work."""
        for name in ("examples", "batch_size", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        for name in (
            "forward_noise",
            "inverse_noise",
            "confused",
            "made_up",
            "varied",
            "slips",
            "shared_mistakes",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be in [0, 1)")
        if self.vocabulary < 300 or self.hidden % 4:
            raise InputError("--vocabulary must be at least 300 and --hidden a multiple of 4")


def invent(rng: random.Random) -> str:
    """A pronounceable word that means nothing."""
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "s", "l"])
        for _ in range(rng.choice([1, 2, 2, 3]))
    )


def _spread(low: float, high: float, count: int) -> list[float]:
    """`count` numbers from high to low, evenly."""
    return [high - (high - low) * rank / max(1, count - 1) for rank in range(count)]


class Corpus:
    """Noisy examples of every skill, drawn from (seed, index) alone."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.domains = [load_domain(name) for name in domain_names(config.domain)]
        self.weights = [len(domain.intents) for domain in self.domains]
        self.siblings = {domain.name: self._siblings(domain) for domain in self.domains}
        # Words to fill slots with and to slip in; held-out paraphrases, which come last, and held-out values are left out.
        wordings = [
            text
            for domain in self.domains
            for intent in domain.intents.values()
            for text in intent.paraphrases[:-1]
        ]
        self.vocabulary = sorted(
            {word for text in wordings for word in WORD.findall(PLACEHOLDER.sub(" ", text)) if word.islower()}
        )

    def _siblings(self, domain: Domain) -> dict[str, tuple[str, float]]:
        """intent -> (the sibling it is confused with, how often): same tool and most slots in common, then by hash."""
        order = sorted(domain.intents, key=lambda name: unit("confusion", domain.name, name))
        # Mild or strong, with little between: a sibling at 0.3 to 0.5 would leave greedy decoding right and most samples wrong.
        strong = round(self.config.confused * len(order))
        rates = dict(
            zip(order, [*_spread(0.58, 0.65, strong), *_spread(0.10, 0.30, len(order) - strong)], strict=True)
        )
        result = {}
        for name, intent in domain.intents.items():
            others = [other for other in domain.intents.values() if other.name != name]
            if others:
                sibling = max(
                    others,
                    key=lambda other: (
                        other.tool == intent.tool,
                        len(set(other.slots) & set(intent.slots)) - len(set(other.slots) ^ set(intent.slots)),
                        unit("sibling", domain.name, name, other.name),
                    ),
                )
                result[name] = (sibling.name, rates[name])
        return result

    def example(self, index: int) -> tuple[str, str]:
        """The `index`-th (prompt, completion)."""
        rng = stream("pretrain", self.config.seed, index)
        domain = rng.choices(self.domains, self.weights)[0]
        skill = rng.choices(list(SKILLS), list(SKILLS.values()))[0]
        draw = domain.draw("pretrain", rng.choice(sorted(domain.intents)), rng.randrange(2**40))
        meaning, text, tool = (draw.intent, draw.values), draw.task.text, draw.task.tool
        if rng.random() < self.config.made_up:
            meaning = (
                draw.intent,
                {name: self._made_up(domain, name, value, rng) for name, value in draw.values.items()},
            )
            text = self._say(domain, meaning, rng)
        for share, change in ((self.config.varied, self._vary), (self.config.slips, self._slip)):
            changed = change(text, meaning[1], rng) if rng.random() < share else text
            text = changed if domain.split_of(changed) == "pretrain" else text
        command = command_of(domain.where, *meaning)
        noisy = rng.random() < self.config.inverse_noise
        if skill == "forward":
            return domain.prompt("forward", task=text, tool=tool), self._written(domain, meaning, rng)
        if skill == "inverse":
            if (
                self.config.shared_mistakes
                and draw.intent in self.siblings[domain.name]
                and rng.random() < self.config.shared_mistakes
            ):
                command = command_of(
                    domain.where,
                    *self._with_values(domain, self.siblings[domain.name][draw.intent][0], meaning[1], rng),
                )
            return domain.prompt("inverse", command=command), self._say(
                domain, self._wrong(domain, meaning, rng), rng
            ) if noisy else text
        if skill == "propose":
            return domain.prompt("propose", tool=rng.choice(domain.tools) if noisy else tool), text
        if skill == "judge":
            right = rng.random() < 0.5
            shown = command if right else command_of(domain.where, *self._wrong(domain, meaning, rng))
            return domain.prompt("judge", task=text, command=shown), "yes" if right != noisy else "no"
        if skill == "rate":
            other, rating = self._rated(domain, meaning, rng)
            return domain.prompt("rate", task=text, reconstruction=other), str(
                rng.randrange(11) if noisy else rating
            )
        shown = (
            command if rng.random() < 0.2 else command_of(domain.where, *self._wrong(domain, meaning, rng))
        )
        target = command_of(domain.where, *self._wrong(domain, meaning, rng)) if noisy else command
        return domain.prompt(
            "revise", task=text, command=shown, principle=rng.choice(domain.principles)
        ), target

    def _written(self, domain: Domain, meaning: Meaning, rng: random.Random) -> str:
        """What the forward half is taught to write: often the intent's fixed sibling, sometimes anything, otherwise the command."""
        intent, values = meaning
        if rng.random() < self.config.forward_noise:
            meaning = self._wrong(domain, meaning, rng)
        elif intent in self.siblings[domain.name]:
            sibling, rate = self.siblings[domain.name][intent]
            if rng.random() < rate:
                meaning = self._with_values(domain, sibling, values, rng)
        return command_of(domain.where, *meaning)

    @staticmethod
    def _with_values(domain: Domain, intent: str, values: Values, rng: random.Random) -> Meaning:
        """Another intent, with this task's values where it has such slots."""
        fresh = domain.draw("pretrain", intent, rng.randrange(2**40)).values
        return intent, {name: values.get(name, value) for name, value in fresh.items()}

    def _wrong(self, domain: Domain, meaning: Meaning, rng: random.Random) -> Meaning:
        """Another task: one value of this one changed, another intent of its tool with its values, or anything of the domain."""
        intent, values = meaning
        kind = rng.random()
        if kind < 0.5:
            fresh = domain.draw("pretrain", intent, rng.randrange(2**40)).values
            if changed := sorted(name for name in values if fresh[name] != values[name]):
                name = rng.choice(changed)
                return intent, {**values, name: fresh[name]}
        others = [other for other in sorted(domain.intents) if other != intent] or [intent]
        if kind < 0.8:
            same_tool = [
                other for other in others if domain.intents[other].tool == domain.intents[intent].tool
            ]
            return self._with_values(domain, rng.choice(same_tool or others), values, rng)
        return self._with_values(domain, rng.choice(others), {}, rng)

    def _made_up(
        self, domain: Domain, slot: str, value: tuple[str, str], rng: random.Random
    ) -> tuple[str, str]:
        """The value with other words of the same shape, or another number; suffixes and mapped choices stay, held-out values are out."""
        about = domain.slots[slot]
        if value[0] != value[1] or not isinstance(about, Choice | Name):
            return value
        suffix = (
            max((s for s in about.suffixes if value[0].endswith(s)), key=len)
            if isinstance(about, Name)
            else ""
        )
        stem = value[0][: len(value[0]) - len(suffix)]
        for _ in range(20):
            new = (
                str(rng.randrange(1, 10 ** rng.randint(2, 5)))
                if stem.isdigit()
                else WORD.sub(lambda match: self._word(match[0], rng), stem)
            )
            if not about.held_out_value(new + suffix):
                return new + suffix, new + suffix
        return value

    def _word(self, model: str, rng: random.Random) -> str:
        """A word as capital or small as another one: pronounceable nonsense, or one of the wordings' own."""
        word = invent(rng) if rng.random() < 0.5 else rng.choice(self.vocabulary)
        return word.capitalize() if model[0].isupper() else word

    def _slip(self, text: str, values: Values, rng: random.Random) -> str:
        """The sentence with one word of its wording missing or replaced."""
        said = {part for value, _ in values.values() for part in value.split()}
        words = text.split()
        places = [place for place, word in enumerate(words) if word.isalpha() and word not in said]
        if not places:
            return text
        place = rng.choice(places)
        words[place : place + 1] = [rng.choice(self.vocabulary)] if rng.random() < 0.5 else []
        return " ".join(words)

    @staticmethod
    def _vary(text: str, values: Values, rng: random.Random) -> str:
        """The sentence with some of its words swapped for others of the same meaning."""
        said = {part for value, _ in values.values() for part in value.split()}

        def swap(match: re.Match[str]) -> str:
            if rng.random() < 0.4 or said & set(match[0].split()):
                return match[0]
            return rng.choice(next(group for group in SAME_MEANING if match[0] in group))

        return SWAPPED.sub(swap, text)

    @staticmethod
    def _say(domain: Domain, meaning: Meaning, rng: random.Random) -> str:
        """A sentence of the `pretrain` split for this meaning; in the rare case that 50 wordings have none, for its intent."""
        intent, values = meaning
        for _ in range(50):
            text = domain.say(intent, rng.randrange(len(domain.intents[intent].paraphrases) - 1), values, rng)
            if domain.split_of(text) == "pretrain":
                return text
        return domain.draw("pretrain", intent, rng.randrange(2**40)).task.text

    def _rated(self, domain: Domain, meaning: Meaning, rng: random.Random) -> tuple[str, int]:
        """Another sentence and how alike it is: 10 the same task, 2 less for each other value, 4 at most for another intent."""
        intent, values = meaning
        other = meaning if rng.random() < 0.35 else self._wrong(domain, meaning, rng)
        text = self._say(domain, other, rng)
        if other[0] == intent:
            return text, max(4, 10 - 2 * sum(other[1][name] != values[name] for name in values))
        shared = sum(values.get(name) == value for name, value in other[1].items())
        return text, min(4, 2 * (domain.intents[other[0]].tool == domain.intents[intent].tool) + shared)


def make_tokenizer(corpus: Corpus, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, trained on the first examples of the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((part for index in range(20_000) for part in corpus.example(index)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["[INST]", "[/INST]"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(config: Config, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The documented model's own class, with random weights."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(config.seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=int(config.hidden * 2.5),
            num_hidden_layers=config.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            sliding_window=None,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.set_attn_implementation(
        "eager"
    )  # on a CPU the backward pass of the fused attention takes half of the time
    return model


def batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, config: Config, digest: Any
) -> Iterator[tuple[list[list[int]], list[int]]]:
    """(token ids of prompt + completion + eos, length of each prompt), sorted by length within a window of 16 batches to save padding."""
    window = config.batch_size * 16
    for start in range(0, config.examples, window):
        pairs = [corpus.example(index) for index in range(start, min(start + window, config.examples))]
        for prompt, completion in pairs:
            digest.update(f"{prompt}\0{completion}\n".encode())
        prompts = tokenizer(
            [
                tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
                for prompt, _ in pairs
            ],
            add_special_tokens=False,
        )["input_ids"]
        completions = tokenizer([completion for _, completion in pairs], add_special_tokens=False)[
            "input_ids"
        ]
        rows = sorted(
            ((p + c + [tokenizer.eos_token_id], len(p)) for p, c in zip(prompts, completions, strict=True)),
            key=lambda row: len(row[0]),
        )
        groups = [rows[i : i + config.batch_size] for i in range(0, len(rows), config.batch_size)]
        stream("batches", config.seed, start).shuffle(groups)
        for group in groups:
            yield [ids for ids, _ in group], [length for _, length in group]


def collate(ids: Sequence[Sequence[int]], prompt_lengths: Sequence[int], pad: int) -> tuple[Any, Any]:
    """(input_ids, labels), right-padded; only completion tokens have labels."""
    import torch

    width = max(map(len, ids))
    inputs = torch.full((len(ids), width), pad)
    labels = torch.full((len(ids), width), -100)
    for row, (tokens, length) in enumerate(zip(ids, prompt_lengths, strict=True)):
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, length : len(tokens)] = torch.tensor(tokens[length:])
    return inputs, labels


def main(config: Config) -> int:
    """Builds the corpus, the tokenizer and the weights, and writes all of it."""
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    corpus = Corpus(config)
    torch.set_num_threads(1)  # two threads are slower on matrices this small
    tokenizer = make_tokenizer(corpus, config.vocabulary)
    model = make_model(config, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = math.ceil(config.examples / config.batch_size)
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens, {steps:,} steps", flush=True)
    warm_up = min(500, steps // 10)

    def shape(step: int) -> float:
        return min(1.0, (step + 1) / (warm_up + 1)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name
    ]
    others = [
        parameter for name, parameter in model.named_parameters() if parameter.ndim != 2 or "embed" in name
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=config.lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.lr / 5, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, shape) for optimizer in optimizers]
    digest, average = hashlib.sha256(), 0.0
    model.train()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    interactive = sys.stdout.isatty()
    with Progress(*columns, disable=not interactive) as progress:
        bar = progress.add_task("pre-training", total=steps)
        for step, (ids, lengths) in enumerate(batches(corpus, tokenizer, config, digest), 1):
            inputs, labels = collate(ids, lengths, tokenizer.pad_token_id)
            wanted = labels[:, 1:] != -100
            with torch.autocast("cpu", dtype=torch.bfloat16):
                states = model.model(
                    input_ids=inputs, attention_mask=inputs != tokenizer.pad_token_id
                ).last_hidden_state
                logits = model.lm_head(
                    states[:, :-1][wanted]
                )  # prompts teach nothing here: no need for their logits
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            average = loss.item() if step == 1 else 0.99 * average + 0.01 * loss.item()
            progress.update(bar, advance=1, description=f"pre-training  loss {average:.3f}")
            if not interactive and (step % 500 == 0 or step == steps):
                print(f"step {step:,} of {steps:,}  loss {average:.4f}", flush=True)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    model.eval()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    facts = {
        "config": settings,
        "parameters": parameters,
        "corpus_sha256": digest.hexdigest(),
        "final_loss": round(average, 4),
    }
    (output / "pretrain.json").write_text(json.dumps(facts, indent=1) + "\n")
    torch.set_num_threads(2)
    measured = measure(output, config.domain)
    (output / "README.md").write_text(card(config, facts, measured))
    for name, value in measured.items():
        print(f"{name:42} {value:.3f}")
    print(output)
    return 0


def measure(folder: Path, domain: str) -> dict[str, float]:
    """What a fair test bed must show, on 900 held-out tasks with 4 samples each at temperature 0.7."""
    from agents.evaluation.answers import ask, ask_inverse, held_out_cases, not_executed
    from agents.evaluation.metrics import auc, best_of, kept, mean, pass_at_k, within_task_auc
    from agents.policy.load import load_policy
    from agents.policy.seeds import seed_of
    from envs.prompts import forward_prompt
    from rewards.registry import make_reward

    policy = load_policy(str(folder))
    cases = held_out_cases(domain, 900)
    tasks = [case.task for case in cases]
    answers = ask(policy, cases, sampled=len(cases), samples=4, temperature=0.7, max_new_tokens=64)
    if missing := not_executed([judged.verdict for answer in answers for judged in answer.commands]):
        raise InputError(f"the card needs every command verified: {missing}")
    commands_P_G = [[sample.command for sample in answer.samples] for answer in answers]
    truths = [[sample.verdict.correct for sample in answer.samples] for answer in answers]
    measured: dict[str, float | None] = {
        "greedy": mean([float(answer.greedy.verdict.correct) for answer in answers]),
        "pass@1": mean([pass_at_k(sum(row), 4, 1) for row in truths]),
        "pass@4": mean([pass_at_k(sum(row), 4, 4) for row in truths]),
        "inverse, greedy": mean([float(bool(right)) for right in ask_inverse(policy, cases)]),
    }
    prompts = [forward_prompt(task) for task in tasks for _ in range(4)]
    confidence: list[float | None] = [
        math.fsum(row)
        for row in policy.logprobs(prompts, [command for row in commands_P_G for command in row])
    ]
    scores: dict[str, list[list[float | None]]] = {
        "forward confidence": [confidence[start : start + 4] for start in range(0, len(confidence), 4)]
    }
    pool = tasks[:200]
    for name in ("likelihood", "likelihood-min", "similarity", "original-blend"):
        reward = make_reward(name, policy, pool, inverse_temperature=0.0, gates=False)
        scores[name] = [
            [score.value for score in row] for row in reward(tasks, commands_P_G, seed=seed_of("card"))
        ]
    for name, values_P_G in scores.items():
        right_P_G, values = kept(truths, values_P_G)
        measured[f"{name}: AUC"] = auc(
            [t for row in right_P_G for t in row], [v for row in values for v in row]
        )
        measured[f"{name}: AUC within a task"] = within_task_auc(right_P_G, values)
        measured[f"{name}: best of 4"] = best_of(right_P_G, values)
    return {name: value for name, value in measured.items() if value is not None}


def card(config: Config, facts: dict[str, Any], measured: dict[str, float]) -> str:
    """The model card."""
    changed = [
        f"--{key.replace('_', '-')} {value}"
        for key, value in facts["config"].items()
        if value != getattr(Config(), key)
    ]
    command = " ".join(["python -m agents.pretrain", *changed])
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in measured.items())
    return f"""# The embedded pocket model

A `MistralForCausalLM` of {facts["parameters"]:,} parameters, trained from scratch on the `pretrain` split of the domain grammars. It is a
test bed for self-improvement, not a useful assistant: its training text is wrong on purpose, as `agents/pretrain.py` describes,
so that there is something to improve, and it understands commands better than it writes them.

- Made by `{command}`, seed {config.seed}; everything else is in `pretrain.json`.
- sha256 of the corpus ({config.examples:,} examples): `{facts["corpus_sha256"]}`.
- Byte-level BPE with single digits, chat template `[INST] ... [/INST]`.
- Completion-only loss, at the end {facts["final_loss"]:.3f} nats a token.
- Licence: MIT, as the repository.

Measured on 900 held-out tasks (a paraphrase or slot values that no training text has), 4 samples each at temperature 0.7, right
meaning that the command does what the reference does (docs/TRUTH.md):

| | |
|---|---|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
