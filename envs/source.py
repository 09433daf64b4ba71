"""Where tasks come from: the domain's templates, the model, a JSONL file, or a Hugging Face dataset."""

from __future__ import annotations

import difflib
import importlib.util
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from envs.answers import first_line
from envs.domain import Domain, domain_names, load_domain
from envs.jsonl import read_jsonl
from envs.messages import did_you_mean
from envs.streams import stream
from envs.types import InputError, LanguageModel, Task

LONGEST = 10_000  # characters of a task or a command
TASK = 'write {"task": "..."} on one line'


def check_length(place: str, text: str) -> None:
    """Raises InputError for a task or a command of which no model could read the end."""
    if len(text) > LONGEST:
        raise InputError(f"{place}: has {len(text):,} characters, {LONGEST:,} are allowed: shorten it")


class Source(Protocol):
    """`tasks(count, *stream)` draws from the stream of (seed, cycle, purpose, ...)."""

    def tasks(self, count: int, *stream_parts: object) -> list[Task]:
        """`count` tasks, fewer only where the source says so."""
        ...

    def dropped(self) -> dict[str, int]:
        """Why and how often the last call left something out."""
        ...


def share(count: int, domains: Sequence[Domain], *stream_parts: object) -> dict[str, int]:
    """`count` split evenly over domains; which of them get the remainder is random."""
    order = list(domains)
    stream("share", *stream_parts).shuffle(order)
    return {
        domain.where: count // len(order) + (place < count % len(order)) for place, domain in enumerate(order)
    }


class Templates:
    """Tasks of the `train` split of one or more domains, in equal parts."""

    def __init__(self, domains: Sequence[Domain], split: str = "train") -> None:
        self.domains, self.split = domains, split

    def tasks(self, count: int, *stream_parts: object) -> list[Task]:
        """`count` tasks, shuffled over the domains."""
        shares = share(count, self.domains, *stream_parts)
        tasks = [
            task
            for domain in self.domains
            for task in domain.tasks(self.split, shares[domain.where], *stream_parts)
        ]
        stream("order", *stream_parts).shuffle(tasks)
        return tasks

    def dropped(self) -> dict[str, int]:
        """Templates leave nothing out."""
        return {}


class FromTexts:
    """Tasks from given texts, drawn without repetition as far as they reach.

    Raises:
        InputError: every text is one that must not be trained on.
    """

    def __init__(self, tasks: Sequence[Task], exclude: Collection[str] = ()) -> None:
        excluded = set(map(plain_text, exclude))
        self._tasks = [task for task in tasks if plain_text(task.text) not in excluded]
        self._held_out = len(tasks) - len(self._tasks)
        if not self._tasks:
            raise InputError("--task-source: every task in it is one of the evaluation's: give others")

    def tasks(self, count: int, *stream_parts: object) -> list[Task]:
        """`count` tasks; they repeat only where there are fewer."""
        drawn: list[Task] = []
        while len(drawn) < count:
            part = list(self._tasks)
            stream("texts", len(drawn), *stream_parts).shuffle(part)
            drawn += part[: count - len(drawn)]
        return drawn

    def dropped(self) -> dict[str, int]:
        """How many texts were left out from the start, because the evaluation uses them."""
        return {"held_out": self._held_out}


class Proposed:
    """Tasks that the model proposes, one prompt per tool. Malformed ones and duplicates are dropped.

    Args:
        model: writes the proposals at temperature 1.
        domains: whose tools and `propose` prompts are used.
        exclude: texts that must not be trained on, such as those of the evaluation.
        near: texts with the same numbers and names are near-duplicates from this difflib ratio on.
    """

    def __init__(
        self,
        model: LanguageModel,
        domains: Sequence[Domain],
        exclude: Collection[str] = (),
        near: float = 0.95,
    ) -> None:
        self.model, self.domains, self.exclude, self.near = (
            model,
            domains,
            frozenset(map(plain_text, exclude)),
            near,
        )
        self._dropped: Counter[str] = Counter()

    def tasks(self, count: int, *stream_parts: object) -> list[Task]:
        """Up to `count` tasks: ten rounds of proposals, then it goes on with what there is.

        Raises:
            InputError: not one usable proposal.
        """
        rng = stream("propose", *stream_parts)
        tasks: list[Task] = []
        kept: dict[str, list[str]] = {}  # a task's text, plain -> its values
        self._dropped = Counter()
        for _ in range(10):
            wanted = count - len(tasks)
            if not wanted:
                break
            asked = [
                (domain, rng.choice(domain.tools))
                for domain in rng.choices(self.domains, k=wanted + wanted // 4 + 1)
            ]
            prompts = [domain.prompt("propose", tool=tool) for domain, tool in asked]
            rows = self.model.generate(prompts, temperature=1.0, max_new_tokens=64, seed=rng.getrandbits(62))
            for (domain, tool), row in zip(asked, rows, strict=True):
                text = " ".join(first_line(row[0].text).split())
                if reason := self._fault(text, row[0].truncated, kept):
                    self._dropped[reason] += 1
                elif len(tasks) < count:
                    kept[plain_text(text)] = _values(text)
                    tasks.append(
                        Task(
                            "/".join(["proposed", *map(str, stream_parts), str(len(tasks))]),
                            domain.where,
                            text,
                            tool,
                        )
                    )
        if count and not tasks:
            raise InputError(
                f"--task-source model: no usable proposal in 10 rounds ({dict(self._dropped)}): "
                "use --task-source templates"
            )
        self._dropped["missing"] = count - len(tasks)
        return tasks

    def _fault(self, text: str, truncated: bool, kept: Mapping[str, list[str]]) -> str:
        if truncated or not 3 <= len(text.split()) <= 40 or not text.isprintable():
            return "malformed"
        plain, values = plain_text(text), _values(text)
        if plain in self.exclude:
            return "held_out"
        if plain in kept:
            return "duplicate"
        matcher = difflib.SequenceMatcher(b=plain)
        for other, other_values in kept.items():
            if other_values == values:
                matcher.set_seq1(other)
                if matcher.quick_ratio() >= self.near and matcher.ratio() >= self.near:
                    return "near_duplicate"
        return ""

    def dropped(self) -> dict[str, int]:
        """Counts of the last call: malformed, held_out, duplicate, near_duplicate, missing."""
        return dict(self._dropped)


def plain_text(text: str) -> str:
    """A text as it is compared: without letter case, white space, full stop, or Unicode composition."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!? ")


def _values(text: str) -> list[str]:
    """The words that carry a value: a number, an address, a file name. Tasks differ if one of them does."""
    words = (word.rstrip(",;:.!?") for word in text.casefold().split())
    return sorted(word for word in words if word and not word.isalpha())


def check_source(spec: str, domain: str) -> None:
    """Raises InputError, as `make_source` does, for what shows without a model and without the hub."""
    if spec.startswith("hf:"):
        where = _hub_parts(spec)[0]
        _only([load_domain(name) for name in domain_names(domain)], spec)
        if where.startswith((".", "/", "~")) and not Path(where).exists():
            raise InputError(f"--task-source {spec}: there is no {where}: give a data set or its folder")
        if importlib.util.find_spec("datasets") is None:
            raise InputError(f"--task-source {spec}: needs the datasets library: pip install datasets")
    else:
        make_source("templates" if spec == "model" else spec, domain)


def make_source(
    spec: str, domain: str, model: LanguageModel | None = None, exclude: Collection[str] = ()
) -> Source:
    """Builds a source.

    Args:
        spec: `templates`, `model`, a `.jsonl` file with the key `task` (and `domain`, if needed), or
            `hf:DATASET:COLUMN[:SPLIT]`.
        domain: `all`, a name, or paths: whose templates, tools and prompts are used.
        model: proposes tasks, for `model`.
        exclude: texts that no task may have.

    Raises:
        InputError: what is wrong with `spec` or the file, in one line.
    """
    domains = [load_domain(name) for name in domain_names(domain)]
    if repeated := [name for name, times in Counter(domain.name for domain in domains).items() if times > 1]:
        raise InputError(
            f"--domain {domain}: two domains have the name {repeated[0]!r}: rename one in its file"
        )
    if spec == "templates":
        return Templates(domains)
    if spec == "model":
        if model is None:
            raise InputError("--task-source model: needs a model to propose tasks")
        return Proposed(model, domains, exclude)
    if spec.startswith("hf:"):
        return FromTexts(_hub_tasks(spec, _only(domains, spec)), exclude)
    if spec.endswith(".jsonl"):
        return FromTexts(_file_tasks(Path(spec), domains), exclude)
    sources = "use templates, model, a .jsonl file with a task key, or hf:DATASET:COLUMN"
    raise InputError(f"--task-source {spec}: {did_you_mean(spec, ('templates', 'model'), sources)}")


def _only(domains: Sequence[Domain], spec: str) -> Domain:
    if len(domains) != 1:
        raise InputError(
            f"--task-source {spec}: name the one --domain whose prompts these tasks are to be shown with"
        )
    return domains[0]


def _file_tasks(path: Path, domains: Sequence[Domain]) -> list[Task]:
    tasks = []
    try:
        for number, row in read_jsonl(path, "--task-source", TASK):
            tasks.append(_file_task(path, number, row, domains))
    except FileNotFoundError:
        raise InputError(f"--task-source {path}: no such file: give the path of a .jsonl file") from None
    if not tasks:
        raise InputError(f"{path}:1: the file has no tasks: {TASK}")
    return tasks


def _file_task(path: Path, number: int, row: Mapping[str, Any], domains: Sequence[Domain]) -> Task:
    place = f"{path}:{number}"
    text = row.get("task")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: task: is missing or not a text: {TASK}")
    check_length(f"{place}: task", text)
    domain = domain_of_row(place, row, domains)
    return Task(f"{path.name}/{number}", domain.where, " ".join(text.split()))


def domain_of_row(place: str, row: Mapping[str, Any], domains: Sequence[Domain]) -> Domain:
    """The domain that a row of a file names by its key `domain`; it may be left out where there is one.

    Args:
        place: file and line, for messages.

    Raises:
        InputError: it is missing, or not one of `domains`.
    """
    name = row.get("domain")
    if name is None:
        if len(domains) > 1:
            fix = f'add "domain": "{domains[0].name}" or another, or give one --domain for all tasks'
            raise InputError(f"{place}: domain: is missing: {fix}")
        return domains[0]
    for domain in domains:
        if name in (domain.name, domain.where):
            return domain
    names = [domain.name for domain in domains]
    raise InputError(f"{place}: domain: {name!r} is not one of --domain: {did_you_mean(name, names)}")


def _hub_parts(spec: str) -> tuple[str, str, str]:
    """The data set, column and split of hf:DATASET:COLUMN[:SPLIT]."""
    parts = spec.split(":")
    if len(parts) not in (3, 4) or not all(parts):
        raise InputError(f"--task-source {spec}: write hf:DATASET:COLUMN or hf:DATASET:COLUMN:SPLIT")
    return parts[1], parts[2], parts[3] if len(parts) == 4 else "train"


def _hub_tasks(spec: str, domain: Domain) -> list[Task]:
    name, column, split = _hub_parts(spec)
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"--task-source {spec}: needs the datasets library: pip install datasets") from None
    try:
        rows = load_dataset(name, split=split)
    except Exception as error:  # whatever the library raises for a bad name, network or file
        problem = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"--task-source {spec}: cannot be loaded: {problem}: "
            "check the name and the network, or give a folder"
        ) from None
    if column not in rows.column_names:
        raise InputError(
            f"--task-source {spec}: no column {column!r}: use one of {', '.join(rows.column_names)}"
        )
    texts = [
        (row, " ".join(text.split()))
        for row, text in enumerate(rows[column])
        if isinstance(text, str) and text.strip()
    ]
    if not texts:
        raise InputError(
            f"--task-source {spec}: column {column!r} has no text: use one of {', '.join(rows.column_names)}"
        )
    for row, text in texts:
        check_length(f"--task-source {spec}: row {row}", text)
    return [Task(f"{name}/{row}", domain.where, text) for row, text in texts]
