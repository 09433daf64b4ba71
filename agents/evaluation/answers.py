"""What a policy answers to held-out tasks, and whether each answer is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.answers import command_in, take_out
from envs.domain import domain_names, load_domain
from envs.prompts import forward_prompt
from envs.source import Templates
from envs.streams import seed_of
from envs.types import Reward, Score
from envs.verify.truth import Case, find_case, read_cases, reconstruction_match, verify
from envs.verify.verdict import Verdict
from rewards.reconstruction import reconstruct

if TYPE_CHECKING:
    from agents.policy.policy import Policy


@dataclass(frozen=True)
class Judged:
    """A command with its verdict.

    Attributes:
        command: empty where the answer has none.
        exact: whether it equals the reference, white space apart.
        score: what the reward gave it; None where no reward was asked.
        answer: what was written.
        plain: whether the answer was nothing but the command.
    """

    command: str
    verdict: Verdict
    exact: bool
    score: Score | None = None
    answer: str = ""
    plain: bool = True


@dataclass(frozen=True)
class Answer:
    """What a policy made of one task.

    Attributes:
        inverse: whether it reconstructed the task from the reference command; None where it was not asked or
            cannot be checked.
        scores: reward -> scores of `commands`; empty where the greedy command is not scored.
    """

    case: Case
    greedy: Judged
    samples: tuple[Judged, ...] = ()
    inverse: bool | None = None
    scores: Mapping[str, tuple[Score, ...]] = field(default_factory=dict)

    @property
    def commands(self) -> tuple[Judged, ...]:
        """The greedy command and the samples."""
        return (self.greedy, *self.samples)


def held_out_cases(domain: str, tasks: int) -> list[Case]:
    """Held-out tasks with their references, spread evenly over the domains; always the same ones."""
    templates = Templates([load_domain(name) for name in domain_names(domain)], "heldout")
    cases = []
    for task in templates.tasks(tasks, "held-out"):
        case = find_case(task)
        if case is not None:
            cases.append(case)
    return cases


def cases_of(domains: str, tasks: int, tasks_file: str | None) -> list[Case]:
    """Held-out tasks of each domain, or those of a file, whose lines may name one of the domains.

    Raises:
        InputError: the file is faulty.
    """
    if tasks_file is not None:
        return read_cases(Path(tasks_file), domains)
    cases = []
    for name in domain_names(domains):
        cases += held_out_cases(name, tasks)
    return cases


def ask(
    policy: Policy,
    cases: Sequence[Case],
    *,
    sampled: int,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    reward: Reward | None = None,
) -> list[Answer]:
    """A greedy command for every task, and sampled ones for the first few; all verified.

    The random streams are always the same, so two policies differ by their weights alone.

    Args:
        sampled: how many of the tasks are sampled as well.
        samples: commands sampled for each of them.
        reward: scores the samples.
    """
    prompts = [forward_prompt(case.task) for case in cases]
    greedy_P = policy.generate(prompts, temperature=0.0, max_new_tokens=max_new_tokens)
    greedy = judge_answers(cases, [row[0].text for row in greedy_P])

    written_P_G = policy.generate(
        prompts[:sampled],
        samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed_of("evaluation"),
    )
    owners: list[Case] = []
    written: list[str] = []
    commands_P_G = []
    for case, row in zip(cases[:sampled], written_P_G, strict=True):
        owners += [case] * len(row)
        written += [completion.text for completion in row]
        commands_P_G.append([command_in(completion.text) for completion in row])
    scores: list[Score] | None = None
    if reward is not None:
        tasks = [case.task for case in cases[:sampled]]
        scores = []
        for row_of_scores in reward(tasks, commands_P_G, seed=seed_of("evaluation reward")):
            scores += row_of_scores
    judged = judge_answers(owners, written, scores)

    answers = []
    for place, case in enumerate(cases):
        own = judged[place * samples : (place + 1) * samples]  # none for the tasks that were not sampled
        answers.append(Answer(case, greedy[place], tuple(own)))
    return answers


def judge(
    cases: Sequence[Case], commands: Sequence[str], scores: Sequence[Score] | None = None
) -> list[Judged]:
    """Verifies one command for each case; a case may come several times."""
    verdicts = verify([case.task for case in cases], commands, cases)
    judged = []
    for place, (case, command) in enumerate(zip(cases, commands, strict=True)):
        exact = command.split() == case.reference.split()
        score = None if scores is None else scores[place]
        judged.append(Judged(command, verdicts[place], exact, score))
    return judged


def judge_answers(
    cases: Sequence[Case], written: Sequence[str], scores: Sequence[Score] | None = None
) -> list[Judged]:
    """Takes the command out of one answer for each case, and verifies it."""
    answers = [take_out(text) for text in written]
    judged = []
    commands = [answer.command or "" for answer in answers]
    for text, answer, row in zip(written, answers, judge(cases, commands, scores), strict=True):
        verdict = row.verdict
        if answer.command is None and text:
            verdict = replace(verdict, reason=answer.reason)
        judged.append(replace(row, verdict=verdict, answer=text, plain=answer.plain))
    return judged


def ask_inverse(policy: Policy, cases: Sequence[Case], max_new_tokens: int = 64) -> list[bool | None]:
    """Whether the policy, greedily, reconstructs each task from its reference; None without a grammar."""
    pairs = [(case.task, case.reference) for case in cases]
    texts = reconstruct(policy, pairs, 0.0, 0, max_new_tokens)
    return [reconstruction_match(case.task, text) for case, text in zip(cases, texts, strict=True)]


def not_executed(verdicts: Sequence[Verdict]) -> str:
    """A line for the user: how many commands could not be executed, and the main reason; empty if none."""
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.status == "not_executed")
    if not reasons:
        return ""
    reason, _ = reasons.most_common(1)[0]
    others = len(reasons) - 1
    more = f" (and {others} other reasons)" if others else ""
    count = f"{reasons.total()} of {len(verdicts)} commands"
    return f"{count} could not be executed and are excluded: {reason}{more}"


def record(answer: Answer) -> dict[str, Any]:
    """An answer as a line of truth.jsonl; times are left out, so the same seed writes the same bytes."""
    case = answer.case
    return {
        "task_id": case.task.id,
        "domain": case.task.domain,
        "intent": case.intent,
        "task": case.task.text,
        "reference": case.reference,
        "greedy": _plain(answer.greedy),
        "samples": [_plain(judged) for judged in answer.samples],
    }


def _plain(judged: Judged) -> dict[str, Any]:
    verdict = judged.verdict
    row: dict[str, Any] = {"command": judged.command, "status": verdict.status}
    if not judged.plain:
        row["answer"] = judged.answer
    if verdict.reason:
        row["reason"] = verdict.reason
    if verdict.differed:
        row["differed"] = verdict.differed
    if judged.score is not None:
        row["score"] = judged.score.value
    return row
