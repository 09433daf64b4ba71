"""Rejection-sampling SFT, the documented loop: write, read back, score, keep the good ones, train on them, again.

    python -m agents.rejection_sft --cycles 10
    python -m agents.rejection_sft --reward likelihood --domain shell --seed 1

Each cycle scores tasks x candidates BEFORE, accepts some of them, trains the adapter on the accepted ones (loss on the command
alone, in the template that generation uses), and scores as many candidates of fresh tasks AFTER. Scores come from the policy
itself; whether they mean anything is for the held-out truth in `eval/*` to say, which nothing here can learn from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.training.command import run_command
from agents.training.config import TrainConfig

if TYPE_CHECKING:
    from agents.policy.model import Policy
    from agents.training.rollouts import Batch, Rollout
    from agents.training.session import Session
    from agents.training.update import Example


GAP_TASKS = 15  # tasks of the after phase whose candidates are scored under the base as well


@dataclass(frozen=True)
class Config(TrainConfig):
    """Rejection-sampling SFT: the model trains on those of its own commands that it can read back."""

    select: Literal["threshold", "best", "quantile"] | None = None
    """What is accepted: all from --threshold on, the best of each task, or the top --keep-share. By default what the reward calls for."""
    keep_share: float | None = None
    """Share kept: with `best`, of the tasks' best candidates (default 0.8); with `quantile`, of all candidates (default 0.3)."""
    replay: Literal["none", "all"] = "none"
    """Train on this cycle's accepted candidates alone, or on those of all cycles so far."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("keep_share", self.keep_share is None or 0 < self.keep_share <= 1, "must be in (0, 1]")


def select(values_P_G: Sequence[Sequence[float | None]], rule: str, threshold: float, keep: float) -> list[int]:
    """Positions of the accepted candidates, counted task after task. Candidates on which the reward abstained are never accepted.

    Args:
        values_P_G: scores, G candidates for each of P tasks.
        rule: `threshold`: every score >= threshold. `best`: the best of each task, if among the top `keep` of these bests.
            `quantile`: the top `keep` of all scores. Equal scores: the first one written.
    """
    flat = [(position, value) for position, value in enumerate(value for row in values_P_G for value in row) if value is not None]
    if rule == "threshold":
        return [position for position, value in flat if value >= threshold]
    if rule == "best":
        known, start, bests = dict(flat), 0, []
        for row in values_P_G:
            group = [(position, known[position]) for position in range(start, start + len(row)) if position in known]
            start += len(row)
            bests += [max(group, key=lambda pair: pair[1])] if group else []
        flat = bests
    ranked = sorted(flat, key=lambda pair: (-pair[1], pair[0]))
    return sorted(position for position, _ in ranked[: math.ceil(keep * len(ranked))])


def summary(batch: Batch, accepted: Sequence[int]) -> dict[str, Any]:
    """The original's four numbers of a phase."""
    values = [r.score.value for r in batch.rollouts if r.score.value is not None]
    return {
        "total_generated": len(batch.rollouts),
        "accepted": len(accepted),
        "acceptance_rate": len(accepted) / len(batch.rollouts),
        "mean_score": math.fsum(values) / len(values) if values else 0.0,
    }


def examples_of(policy: Policy, rollouts: Sequence[Rollout]) -> list[Example]:
    """(prompt ids, command ids + end of sequence): the tokens that were generated, and the end of a line as the end of all."""
    from agents.training.rollouts import forward_prompt

    prompts = policy.prompt_ids([forward_prompt(rollout.task) for rollout in rollouts])
    return [(p, [*r.completion.token_ids, policy.tokenizer.eos_token_id]) for p, r in zip(prompts, rollouts, strict=True)]


def earlier_examples(session: Session) -> list[Example]:
    """What earlier cycles accepted, from the run's own log: for `--replay all` after a resume."""
    from agents.training.rollouts import read_accepted

    return examples_of(session.policy, read_accepted(session.run.folder / "rollouts.jsonl", phase="before"))


def main(config: Config) -> int:
    """Runs the protocol, or goes on with it, and prints the table of cycles and the run's folder."""
    from agents.training.session import open_session
    from rewards import reward_info, shown

    rule = config.select or reward_info(config.reward).select
    share = config.keep_share or {"best": 0.8, "quantile": 0.3}.get(rule, 1.0)
    config = replace(config, select=rule, keep_share=share)  # type: ignore[arg-type]
    accepts = {"threshold": f"scores from {config.threshold:g} on", "best": f"the best of each task, the top {share:.0%} of these"}
    print(f"reward: {shown(config.reward)}, accepting {accepts.get(rule, f'the top {share:.0%} of all scores')}", flush=True)
    session = open_session("rejection_sft", config)
    try:
        return train(config, session)
    finally:
        session.run.close()


def train(config: Config, session: Session) -> int:
    """The loop itself."""
    from agents.policy.model import EMA, seed_of
    from agents.training.display import Display, number
    from agents.training.monitor import Monitor, keep_score, text_metrics
    from agents.training.report import LAYOUT, end_metrics, sample_text
    from agents.training.rollouts import collect, inverter_gap, policy_metrics, records, reward_metrics
    from agents.training.session import saved
    from agents.training.update import fine_tune

    policy, run = session.policy, session.run
    results: dict[str, Any] = {"cycles": [], **session.state.get("results", {}), "config": saved(config)}
    monitor = Monitor(**session.state.get("monitor", {}))
    done, scored = int(session.state.get("cycle", 0)), int(session.state.get("step", 0))
    replayed = earlier_examples(session) if config.replay == "all" else []
    saved_in = 0.0

    def phase(cycle: int, name: str) -> tuple[Batch, list[int]]:
        batch = collect(
            policy,
            session.source,
            session.reward,
            tasks=config.tasks,
            candidates=config.candidates,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            stream=(config.seed, cycle, name),
        )
        # A command that was cut has no end to learn from, whatever its score.
        values = [[None if rollout.completion.truncated else rollout.score.value for rollout in group] for group in batch.groups]
        return batch, select(values, str(config.select), config.threshold, float(config.keep_share or 1.0))

    def checkpoint(cycle: int) -> None:
        results["total_generated"] = sum(c[name]["total_generated"] for c in results["cycles"] for name in ("before", "after"))
        results["total_accepted"] = sum(c[name]["accepted"] for c in results["cycles"] for name in ("before", "after"))
        if results["cycles"]:
            results["improvement"] = results["cycles"][-1]["after"]["mean_score"] - results["cycles"][0]["before"]["mean_score"]
        run.write_json("progress.json", results)
        run.commit(cycle, {"results": results, "monitor": monitor.state}, policy.save)

    def keep(cycle: int) -> dict[str, float | None]:
        if config.keep == "last":
            return {}
        score = keep_score(policy, session.reward, session.probes, config.max_new_tokens, config.seed)
        monitor.kept[str(cycle)] = score
        run.protected = {monitor.best or 0}
        return {"keep/score": score}

    with Display(config.cycles, done) as display:
        if not session.state:
            run.layout(LAYOUT)
            display.phase(0, "evaluate")
            first = session.evaluate(policy, session.reward, 0)
            results["eval"] = {"start": session.evaluate.whole(policy, session.reward, 0)}
            run.scalars(0, 0, {**first, **keep(0)})
            display.line("start        " + eval_facts(first))
            if session.evaluate.note:
                display.line(session.evaluate.note)
            checkpoint(0)
        for cycle in range(done + 1, config.cycles + 1):
            clock = time.perf_counter()
            display.phase(cycle, "before")
            before, accepted = phase(cycle, "before")

            display.phase(cycle, "train")
            training = time.perf_counter()
            examples = replayed + examples_of(policy, [before.rollouts[row] for row in accepted])
            replayed = examples if config.replay == "all" else []
            trained: dict[str, float | None] = {"train/examples": 0.0}
            if examples:
                trained = fine_tune(
                    policy,
                    examples,
                    lr=config.lr,
                    batch_size=config.batch_size,
                    epochs=config.epochs,
                    stream_parts=(config.seed, cycle, "train"),
                )
            else:
                display.line(f"cycle {cycle}: nothing was accepted, so nothing was trained: lower --threshold, or use --select best")
            if config.inverter == "ema":
                policy.update_ema(EMA)
            trained_in = time.perf_counter() - training

            display.phase(cycle, "after")
            after, accepted_after = phase(cycle, "after")

            display.phase(cycle, "evaluate")
            evaluating = time.perf_counter()
            truth = session.evaluate(policy, session.reward, cycle)
            evaluated_in = time.perf_counter() - evaluating
            watching = time.perf_counter()
            if not monitor.scores:
                monitor.scored(before.groups)
            monitor.scored(after.groups)
            health = {**policy_metrics(policy, after.groups), **text_metrics(after.rollouts), **keep(cycle)}
            health["reward/current_minus_base"] = inverter_gap(session.reward, after.groups[:GAP_TASKS], seed_of(config.seed, cycle, "gap"))
            alarms, alarm_lines = monitor.observe({**health, **truth})
            watched_in = time.perf_counter() - watching
            finishing = time.perf_counter()
            results["eval"].pop("end", None)
            results.pop("kept", None)
            if cycle == config.cycles:
                results["kept"] = monitor.best if config.keep == "best" else cycle
                results["eval"]["end"] = whole_of(session, results["kept"], cycle)
            finished_in = time.perf_counter() - finishing

            scored += len(before.rollouts)  # the axis of all trainers: candidates to learn from; AFTER only measures
            entry = {"cycle": cycle, "before": summary(before, accepted), "after": summary(after, accepted_after), "eval": truth}
            entry["improvement"] = entry["after"]["mean_score"] - entry["before"]["mean_score"]  # type: ignore[index]
            results["cycles"].append(entry)
            run.append("rollouts", records(before.rollouts, accepted, cycle=cycle, phase="before"))
            run.append("rollouts", records(after.rollouts, accepted_after, cycle=cycle, phase="after"))
            run.scalars(
                scored,
                cycle,
                {
                    **reward_metrics(before.rollouts),
                    "reward/after": entry["after"]["mean_score"],  # type: ignore[index]
                    "select/acceptance": entry["before"]["acceptance_rate"],  # type: ignore[index]
                    "select/acceptance_after": entry["after"]["acceptance_rate"],  # type: ignore[index]
                    **{f"source/{reason}": float(count) for reason, count in before.dropped.items()},
                    **trained,
                    **health,
                    **alarms,
                    **truth,
                },
            )
            run.text(scored, "samples", sample_text(after.rollouts))
            for line in alarm_lines:
                display.line(f"cycle {cycle}: {line}")
                run.text(scored, "alarms", f"cycle {cycle}: {line}")
            if cycle == config.cycles:
                run.hparams(results["config"], end_metrics(results))
            seconds = {name: before.seconds[name] + after.seconds[name] for name in ("generate", "reward")}
            seconds |= {"train": trained_in, "evaluate": evaluated_in, "watch": watched_in, "evaluate_whole": finished_in}
            seconds["rest"] = time.perf_counter() - clock - sum(seconds.values()) + saved_in  # saving is counted a cycle later
            run.scalars(scored, cycle, {f"time/{name}": value for name, value in seconds.items()})
            saving = time.perf_counter()
            checkpoint(cycle)
            saved_in = time.perf_counter() - saving
            display.finished(
                cycle,
                [
                    f"score {number(entry['before']['mean_score'])} -> {number(entry['after']['mean_score'])}",  # type: ignore[index]
                    f"accepted {entry['before']['acceptance_rate']:.0%}",  # type: ignore[index]
                    eval_facts(truth),
                ],
            )
    run.write_json("self_improvement_results.json", results)
    show_results(config, results, run.folder, session.evaluate.note)
    return 0


def whole_of(session: Session, kept: int, cycle: int) -> dict[str, float | None]:
    """All held-out tasks for the adapter of the kept cycle, which may be an earlier one; the policy is left as it is."""
    now, average = session.policy.snapshot(), session.policy.ema
    if kept != cycle:
        session.policy.load(session.run.folder / "checkpoints" / f"cycle-{kept:04d}")
    try:
        return session.evaluate.whole(session.policy, session.reward, kept)
    finally:
        session.policy.restore(now)
        session.policy.ema = average


def show_results(config: Config, results: dict[str, Any], folder: Path, note: str) -> None:
    """Prints the table of cycles, the truth before and after, what could not be verified, and last the run's folder."""
    from agents.training.display import number, show_table
    from rewards import shown

    subset = min(config.eval_subset, config.eval_tasks)
    header = ("cycle", "before", "after", "change", "accepted", f"greedy truth ({subset} tasks)")
    rows = [
        (
            str(c["cycle"]),
            number(c["before"]["mean_score"]),
            number(c["after"]["mean_score"]),
            f"{c['improvement']:+.3f}",
            f"{c['before']['accepted']}/{c['before']['total_generated']}",
            number(c["eval"]["eval/greedy"]),
        )
        for c in results["cycles"]
    ]
    show_table(f"{config.domain}, {shown(config.reward)}, {config.select}", header, rows)
    start, end = results["eval"]["start"], results["eval"]["end"]
    print(f"{results['total_generated']} candidates, {results['total_accepted']} accepted; its own score {results['improvement']:+.3f}")
    print(
        f"held-out truth, {config.eval_tasks} tasks: greedy {number(start['eval/greedy'])} -> {number(end['eval/greedy'])}, "
        f"pass@1 {number(start['eval/pass@1'])} -> {number(end['eval/pass@1'])}"
    )
    if note:
        print(note)
    if config.keep == "best":
        print(f"kept: cycle {results['kept']} of {config.cycles}, by the score that needs no label")
    print(f"curves: tensorboard --logdir {folder.parent}; adapter: {folder}/checkpoints/cycle-{results['kept']:04d}")
    print(folder)


def eval_facts(truth: dict[str, float | None]) -> str:
    """The held-out numbers of one evaluation, in short."""
    shown = {name.removeprefix("eval/"): value for name, value in truth.items() if name.startswith(("eval/greedy", "eval/pass"))}
    return "held-out " + " ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
