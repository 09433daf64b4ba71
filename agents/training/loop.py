"""The cycles of a run, the same for every trainer: collect, evaluate, watch, log, save, show. What is left to a trainer is to learn.

with Loop(config, session) as loop:
    for cycle in loop.cycles():
        batch = loop.collect("before")
        with loop.training():
            trained = ...  # `train/*`, from the scores of the batch
        loop.finish(batch, trained)
return loop.end()
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.cli.display import Display, number, show_table
from agents.policy.policy import EMA
from agents.training.config import TrainConfig
from agents.training.monitor import Monitor, keep_score, text_metrics
from agents.training.rollouts import Batch, collect, inverter_gap, policy_metrics, records, reward_metrics
from agents.training.session import Session, saved
from agents.training.tensorboard import LAYOUT, end_metrics, sample_text
from envs.streams import seed_of
from rewards.registry import reward_info

GAP_TASKS = 15  # tasks whose candidates are scored under the base as well
Values = dict[str, float | None]


class Loop:
    """A run from its first or next cycle to its last; use it as a context manager.

    Attributes:
        cycle: the one under way.
        memory: plain JSON values of the trainer's own that a checkpoint keeps; what the last one kept.
        save: writes more files of the trainer's own into the checkpoint's folder, beside the adapter.
        restored: the folder of the checkpoint that the run goes on from; None at its start.
    """

    def __init__(self, config: TrainConfig, session: Session) -> None:
        self.config, self.session = config, session
        state = session.state
        labelled = reward_info(
            config.reward
        ).labelled  # of a blend whose file may be gone when the run is read
        self.results: dict[str, Any] = {
            "cycles": [],
            **state.get("results", {}),
            "labelled": labelled,
            "config": saved(config),
        }
        self.memory: dict[str, Any] = dict(state.get("memory", {}))
        self.save: Callable[[Path], None] = lambda folder: None
        self.restored = session.checkpoint
        self.cycle, self.step = int(state.get("cycle", 0)), int(state.get("step", 0))
        self._monitor = Monitor(**state.get("monitor", {}))
        self._display = Display(config.cycles, self.cycle)
        self._seconds: dict[str, float] = {}
        self._clock = self._saved_in = 0.0

    def __enter__(self) -> Loop:
        self._display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)

    def cycles(self) -> Iterator[int]:
        """The cycles that are still to do; before the first of a new run, what the policy can do untrained."""
        if not self.session.state:
            self._start()
        for cycle in range(self.cycle + 1, self.config.cycles + 1):
            self.cycle, self._clock, self._seconds = cycle, time.perf_counter(), {}
            yield cycle

    def collect(self, phase: str) -> Batch:
        """tasks x candidates of this cycle, written and scored."""
        self._display.phase(self.cycle, phase)
        batch = collect(
            self.session.policy,
            self.session.source,
            self.session.reward,
            tasks=self.config.tasks,
            candidates=self.config.candidates,
            temperature=self.config.temperature,
            max_new_tokens=self.config.max_new_tokens,
            stream=(self.config.seed, self.cycle, phase),
        )
        self.spent(batch.seconds)
        return batch

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around the update: counts its time, and moves the averaged adapter after it."""
        with self._timed("train"):
            yield
            if self.config.inverter == "ema":
                self.session.policy.update_ema(EMA)

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Counts seconds of this cycle as `time/<name>`."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value

    def line(self, text: str) -> None:
        """A line for the user about this cycle."""
        self._display.line(f"cycle {self.cycle}: {text}")

    def finish(
        self,
        batch: Batch,
        trained: Values,
        accepted: Sequence[int] | None = None,
        after: tuple[Batch, Sequence[int]] | None = None,
    ) -> None:
        """Ends the cycle: evaluates, watches, logs and saves.

        Args:
            batch: the candidates that were learnt from.
            trained: what the update logs, `train/*` and the like.
            accepted: positions in it of those that were taken as examples, where the trainer chooses.
            after: as many candidates of fresh tasks that only measure, with the positions of those that would be accepted.
        """
        config, session, cycle = self.config, self.session, self.cycle
        with self._timed("evaluate"):
            truth = session.evaluate(session.policy, session.reward, cycle)
        with self._timed("watch"):
            watched = after[0] if after else batch
            if after and not self._monitor.scores:
                self._monitor.scored(batch.groups)
            self._monitor.scored(watched.groups)
            health = {
                **policy_metrics(session.policy, watched.groups),
                **text_metrics(watched.rollouts),
                **self._keep(),
            }
            seed = seed_of(config.seed, cycle, "gap")
            health["reward/current_minus_base"] = inverter_gap(
                session.reward, watched.groups[:GAP_TASKS], seed
            )
            alarms, alarm_lines = self._monitor.observe({**health, **truth})
        with self._timed("evaluate_whole"):
            self._evaluate_whole()

        self.step += len(batch.rollouts)
        entry: dict[str, Any] = {"cycle": cycle, "before": summary(batch, accepted)}
        if after:
            entry["after"] = summary(*after)
            entry["improvement"] = entry["after"]["mean_score"] - entry["before"]["mean_score"]
        entry["eval"] = truth
        self.results["cycles"].append(entry)
        session.run.append("rollouts", records(batch.rollouts, accepted or (), cycle=cycle, phase="before"))
        selection = {"select/acceptance": entry["before"].get("acceptance_rate")}
        if after:
            session.run.append("rollouts", records(after[0].rollouts, after[1], cycle=cycle, phase="after"))
            selection |= {
                "reward/after": entry["after"]["mean_score"],
                "select/acceptance_after": entry["after"]["acceptance_rate"],
            }
        dropped = {f"source/{reason}": float(count) for reason, count in batch.dropped.items()}
        session.run.scalars(
            self.step,
            cycle,
            {
                **reward_metrics(batch.rollouts),
                **selection,
                **dropped,
                **trained,
                **health,
                **alarms,
                **truth,
            },
        )
        session.run.text(self.step, "samples", sample_text(watched.rollouts))
        for text in alarm_lines:
            self.line(text)
            session.run.text(self.step, "alarms", f"cycle {cycle}: {text}")
        if cycle == config.cycles:
            session.run.hparams(self.results["config"], end_metrics(self.results))
        rest = (
            time.perf_counter() - self._clock - math.fsum(self._seconds.values()) + self._saved_in
        )  # saving is counted a cycle later
        session.run.scalars(
            self.step,
            cycle,
            {f"time/{name}": value for name, value in {**self._seconds, "rest": rest}.items()},
        )
        saving = time.perf_counter()
        self._checkpoint()
        self._saved_in = time.perf_counter() - saving
        self._display.finished(cycle, facts(entry))

    def end(self) -> int:
        """Writes the results and shows them; 0, as an exit status."""
        self.session.run.write_json("self_improvement_results.json", self.results)
        show_results(self.config, self.results, self.session.run.folder, self.session.evaluate.note)
        return 0

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Shows what is being done and counts its time as `time/<name>`."""
        self._display.phase(self.cycle, name)
        started = time.perf_counter()
        yield
        self.spent({name: time.perf_counter() - started})

    def _start(self) -> None:
        session = self.session
        session.run.layout(LAYOUT)
        self._display.phase(0, "evaluate")
        first = session.evaluate(session.policy, session.reward, 0)
        self.results["eval"] = {"start": session.evaluate.whole(session.policy, session.reward, 0)}
        session.run.scalars(0, 0, {**first, **self._keep()})
        self._display.line("start        " + eval_facts(first))
        if session.evaluate.note:
            self._display.line(session.evaluate.note)
        self._checkpoint()

    def _keep(self) -> Values:
        """The score by which `--keep best` chooses."""
        if self.config.keep == "last":
            return {}
        score = keep_score(
            self.session.policy,
            self.session.reward,
            self.session.probes,
            self.config.max_new_tokens,
            self.config.seed,
        )
        self._monitor.kept[str(self.cycle)] = score
        self.session.run.protected = {self._monitor.best or 0}
        return {"keep/score": score}

    def _evaluate_whole(self) -> None:
        """After the last cycle all held-out tasks, for the adapter of the kept cycle; the policy is left as it is."""
        self.results["eval"].pop("end", None)
        self.results.pop("kept", None)
        if self.cycle < self.config.cycles:
            return
        policy, kept = (
            self.session.policy,
            (self._monitor.best or 0) if self.config.keep == "best" else self.cycle,
        )
        now, average = policy.snapshot(), policy.ema
        if kept != self.cycle:
            policy.load(self.session.run.folder / "checkpoints" / f"cycle-{kept:04d}")
        try:
            self.results["kept"] = kept
            self.results["eval"]["end"] = self.session.evaluate.whole(policy, self.session.reward, kept)
        finally:
            policy.restore(now)
            policy.ema = average

    def _checkpoint(self) -> None:
        results, phases = (
            self.results,
            [c[name] for c in self.results["cycles"] for name in ("before", "after") if name in c],
        )
        results["total_generated"] = sum(phase["total_generated"] for phase in phases)
        if all("accepted" in phase for phase in phases):
            results["total_accepted"] = sum(phase["accepted"] for phase in phases)
        if phases:
            results["improvement"] = phases[-1]["mean_score"] - phases[0]["mean_score"]
        self.session.run.write_json("progress.json", results)

        def save(folder: Path) -> None:
            self.session.policy.save(folder)
            self.save(folder)

        state = {"results": results, "monitor": self._monitor.state}
        self.session.run.commit(self.cycle, {**state, "memory": self.memory} if self.memory else state, save)


def summary(batch: Batch, accepted: Sequence[int] | None) -> dict[str, Any]:
    """The original's four numbers of a phase; without those of acceptance where nothing is chosen."""
    values = [r.score.value for r in batch.rollouts if r.score.value is not None]
    chosen = (
        {}
        if accepted is None
        else {"accepted": len(accepted), "acceptance_rate": len(accepted) / len(batch.rollouts)}
    )
    return {
        "total_generated": len(batch.rollouts),
        **chosen,
        "mean_score": math.fsum(values) / len(values) if values else 0.0,
    }


def facts(entry: Mapping[str, Any]) -> list[str]:
    """A cycle in a line: score, acceptance, truth."""
    before = entry["before"]
    score = f"score {number(before['mean_score'])}" + (
        f" -> {number(entry['after']['mean_score'])}" if "after" in entry else ""
    )
    accepted = [f"accepted {before['acceptance_rate']:.0%}"] if "accepted" in before else []
    return [score, *accepted, eval_facts(entry["eval"])]


def eval_facts(truth: Mapping[str, float | None]) -> str:
    """The held-out numbers of one evaluation, in short."""
    shown = {
        name.removeprefix("eval/"): value
        for name, value in truth.items()
        if name.startswith(("eval/greedy", "eval/pass"))
    }
    return "held-out " + " ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)


def show_results(config: TrainConfig, results: Mapping[str, Any], folder: Path, note: str) -> None:
    """Prints the table of cycles, the truth before and after, what could not be verified, and last the run's folder."""
    from rewards.registry import shown

    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "cycle": lambda c: str(c["cycle"]),
        "before": lambda c: number(c["before"]["mean_score"]),
        "after": lambda c: number(c["after"]["mean_score"]),
        "change": lambda c: f"{c['improvement']:+.3f}",
        "accepted": lambda c: f"{c['before']['accepted']}/{c['before']['total_generated']}",
        f"greedy truth ({min(config.eval_subset, config.eval_tasks)} tasks)": lambda c: number(
            c["eval"]["eval/greedy"]
        ),
    }
    first = results["cycles"][0]
    missing = {"after", "change"} if "after" not in first else set()
    missing |= {"accepted"} if "accepted" not in first["before"] else set()
    kept = {
        ("score" if missing and name == "before" else name): show
        for name, show in columns.items()
        if name not in missing
    }
    rows = [[show(c) for show in kept.values()] for c in results["cycles"]]
    selection = f", {config.select}" if hasattr(config, "select") else ""
    show_table(f"{config.domain}, {shown(config.reward)}{selection}", tuple(kept), rows)
    start, end = results["eval"]["start"], results["eval"]["end"]
    accepted = f", {results['total_accepted']} accepted" if "total_accepted" in results else ""
    print(f"{results['total_generated']} candidates{accepted}; its own score {results['improvement']:+.3f}")
    print(
        f"held-out truth, {config.eval_tasks} tasks: greedy {number(start['eval/greedy'])} -> {number(end['eval/greedy'])}, "
        f"pass@1 {number(start['eval/pass@1'])} -> {number(end['eval/pass@1'])}"
    )
    if note:
        print(note)
    if config.keep == "best":
        print(f"kept: cycle {results['kept']} of {config.cycles}, by the score that needs no label")
    print(
        f"curves: tensorboard --logdir {folder.parent}; adapter: {folder}/checkpoints/cycle-{results['kept']:04d}"
    )
    print(folder)
