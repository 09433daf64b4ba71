"""What holds for any input: domains as files, splits, scores, gates, and statistics against SciPy's.

make fuzz        tries many more examples
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fuzzing import sentences
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scripted import EMBEDDING, OTHER, POOL, TASK, TEXTS, Letters, Scripted
from test_fuzz import COMMANDS, SHELL, TASKS
from test_rewards import LABEL_FREE, UNBOUNDED

from agents.evaluation.bootstrap import ROUNDS, resamples
from agents.evaluation.metrics import auc, pass_at_k
from agents.evaluation.paired import difference, mcnemar
from agents.evaluation.statistics import calibration_error, mean_estimate, pooled_auc, risk_area
from envs.domain import SPLITS, Domain
from envs.grammar import DomainSpec
from envs.schema import EMBEDDED, load_spec
from envs.types import InputError, Task
from envs.verify.effects import effects_of
from rewards.gates import Gated, gate, stripped, syntax_of
from rewards.registry import make_reward

# ---- domains ----

words = st.from_regex(r"[a-z]{3,8}", fullmatch=True)
slots = st.one_of(
    st.builds(
        lambda low, size: {"kind": "integer", "low": low, "high": low + size},
        st.integers(-9, 9),
        st.integers(20, 99),
    ),
    st.builds(
        lambda found: {"kind": "name", "words": found}, st.lists(words, min_size=4, max_size=6, unique=True)
    ),
    st.just({"kind": "address"}),
    st.builds(lambda prefix: {"kind": "subnet", "prefix": prefix}, st.sampled_from([16, 24])),
    st.lists(words | st.integers(10, 99), min_size=4, max_size=6, unique_by=str).map(
        lambda values: {"kind": "choice", "values": values, "held_out": values[:1]}
    ),
)


@st.composite
def domains(draw: st.DrawFn) -> dict[str, Any]:
    """A domain's file with one or two intents, as plain values."""
    found = {f"s{number}": draw(slots) for number in range(draw(st.integers(1, 2)))}
    holders = " ".join(f"{{{name}}}" for name in found)
    intents = []
    for number, verb in enumerate(draw(st.lists(words, min_size=1, max_size=2, unique=True))):
        said = draw(st.lists(words, min_size=3, max_size=4, unique=True))
        intents.append(
            {
                "name": f"i{number}",
                "tool": "tool",
                "command": f"tool {verb} {holders}",
                "paraphrases": [f"({verb}|please {verb}) {word} {holders}" for word in said],
                "order": draw(st.sampled_from(["free", "matters"])),
            }
        )
    return {
        "name": "mine",
        "system": draw(sentences),
        "tools": ["tool"],
        "prompts": {"forward": "do {task}", "inverse": "say {command}"},
        "slots": found,
        "intents": intents,
    }


def loaded(folder: Path, content: Any) -> DomainSpec:
    """The specification in a file; the example is dropped where it is refused, as for too few values."""
    path = folder / f"{random.getrandbits(64)}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        return load_spec(str(path))
    except InputError:
        assume(False)
        raise
    finally:
        path.unlink()


def as_file(spec: DomainSpec) -> Any:
    return spec.model_dump(mode="json", exclude_defaults=True) | {
        "verify": spec.verify.model_dump(exclude_defaults=True)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@given(domains())
def test_a_domain_that_is_written_again_is_the_same(folder: Path, content: dict[str, Any]) -> None:
    spec = loaded(folder, content)
    again = loaded(folder, as_file(spec))
    assert again == spec
    first, second = Domain("mine", spec), Domain("mine", again)
    for split in SPLITS:
        assert first.tasks(split, 3, 0) == second.tasks(split, 3, 0)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_domain_that_is_written_again_is_the_same(folder: Path, name: str) -> None:
    spec = load_spec(name)
    assert loaded(folder, as_file(spec)) == spec


@given(domains(), st.integers(0, 2**31))
def test_splits_never_overlap(folder: Path, content: dict[str, Any], seed: int) -> None:
    domain = Domain("mine", loaded(folder, content))
    texts = {}
    for split in SPLITS:
        texts[split] = {task.text.casefold() for task in domain.tasks(split, 12, seed)}
    for first, second in (("train", "heldout"), ("pretrain", "heldout"), ("train", "pretrain")):
        assert not texts[first] & texts[second]


# ---- rewards ----


class Anything(Scripted):
    """A model that reconstructs any command as one of a few texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__({})
        self.texts = texts

    def _answer(self, prompt: str) -> str:
        return self.texts[sum(map(ord, prompt)) % len(self.texts)]


def make(name: str, model: Any) -> Any:
    if name in EMBEDDING:
        return Gated(EMBEDDING[name](model, Letters(), TEXTS))  # type: ignore[arg-type]
    return make_reward(name, model, POOL, effects=effects_of)


# Each of their examples is one for every reward.
a_tenth = settings(max_examples=max(5, settings().max_examples // 10))
readings = st.lists(sentences.map(lambda text: text[:80]), min_size=1, max_size=3)
candidates = st.lists(
    st.sampled_from([*COMMANDS, "", "nmap -p 443 web1.test", "ping -c 5 db.test"]) | sentences,
    min_size=2,
    max_size=4,
)


@a_tenth
@given(first=candidates, second=candidates, read=readings, seed=st.integers(0, 99))
def test_scores_are_in_range(first: list[str], second: list[str], read: list[str], seed: int) -> None:
    for name in LABEL_FREE:
        scores_P_G = make(name, Anything([*read, TASK.text]))([TASK, OTHER], [first, second], seed=seed)
        assert [len(row) for row in scores_P_G] == [len(first), len(second)]
        for score in (score for row in scores_P_G for score in row):
            if score.value is not None:
                assert np.isfinite(score.value) and (name in UNBOUNDED or 0 <= score.value <= 1), name
            assert all(np.isfinite(value) for value in score.parts.values()), name


@a_tenth
@given(commands=candidates, read=readings, rng=st.randoms(use_true_random=False))
def test_the_order_of_candidates_and_tasks_does_not_matter(
    commands: list[str], read: list[str], rng: Any
) -> None:
    order = list(range(len(commands)))
    rng.shuffle(order)
    for name in sorted(set(LABEL_FREE) - {"random", "shuffled"}):  # which go by the position
        reward = make(name, Anything([*read, TASK.text]))
        [scores] = reward([TASK], [commands], seed=3)
        _, moved = reward([OTHER, TASK], [commands, [commands[place] for place in order]], seed=3)
        for place, score in zip(order, moved, strict=True):
            assert score.value == pytest.approx(scores[place].value, abs=1e-6), name
            assert score.reason == scores[place].reason


@given(
    st.sampled_from(TASKS),
    st.lists(st.sampled_from([*COMMANDS, *SHELL]) | sentences, max_size=4).map(" ".join),
)
def test_gates_are_idempotent(task: Task, command: str) -> None:
    command = command.replace("\n", " ")  # an answer's command is one line
    once = stripped(task, command, syntax_of(task))
    assert stripped(task, once, syntax_of(task)) == once
    found = gate(task, command)
    if not found.reason:
        again = gate(task, found.command)
        assert (again.command, again.reason) == (found.command, "")


# ---- statistics ----

binary = st.lists(
    st.tuples(st.booleans(), st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=30
)


@given(binary)
def test_auc_is_mann_whitney(pairs: list[tuple[bool, float]]) -> None:
    right = [score for is_right, score in pairs if is_right]
    wrong = [score for is_right, score in pairs if not is_right]
    found = auc([is_right for is_right, _ in pairs], [score for _, score in pairs])
    if not right or not wrong:
        assert found is None
        return
    assert found == pytest.approx(stats.mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_binomial_test(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


@given(st.data(), st.integers(1, 40))
def test_pass_at_k_is_hypergeometric(data: st.DataObject, n: int) -> None:
    k, right = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    assert pass_at_k(right, n, k) == pytest.approx(stats.hypergeom(n, right, k).sf(0))


column = st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=20).filter(
    lambda values: len(set(values)) > 1
)


@given(column)
def test_the_interval_of_a_mean_is_scipys(values: list[float]) -> None:
    found = mean_estimate(np.array(values, dtype=float), resamples(len(values), ROUNDS))
    expected = percentile(values)
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(column, st.data())
def test_the_interval_of_a_difference_is_scipys(values: list[float], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=len(values), max_size=len(values)))
    change = np.array(others, dtype=float) - np.array(values, dtype=float)
    assume(len(set(change)) > 1)
    found = difference(np.array(values, dtype=float), np.array(others, dtype=float))
    expected = percentile(change)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def percentile(values: Any) -> Any:
    """SciPy's percentile bootstrap with the same draws as ours."""
    return stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=ROUNDS,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval


@given(st.integers(1, 8), st.integers(1, 4), st.randoms(use_true_random=False))
def test_figures_do_not_depend_on_the_order_of_tasks(tasks: int, samples: int, rng: Any) -> None:
    draw = np.random.default_rng(rng.getrandbits(32))
    right = draw.integers(2, size=(tasks, samples)).astype(float)
    scores = draw.permutation(tasks * samples).reshape(tasks, samples) / (tasks * samples)
    scores[draw.random(scores.shape) < 0.2] = np.nan
    order = draw.permutation(tasks)
    for measure in (pooled_auc, calibration_error, risk_area):
        value = measure(right, scores)
        assert value == pytest.approx(measure(right[order], scores[order]))
        assert value is None or 0 <= value <= 1
