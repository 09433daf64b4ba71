"""The cycles of a run, the same for every trainer: roll out, evaluate, watch, log, save. It adds the update.

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
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agents.cli.display import Display
from agents.evaluation.metrics import mean
from agents.policy.policy import EMA
from agents.training.config import TrainConfig
from agents.training.monitor import Monitor, probe, text_metrics
from agents.training.recorded import Group
from agents.training.results import cycle_facts, held_out_facts, show_results
from agents.training.rollouts import (
    AS_THEY_COME,
    Batch,
    Drawing,
    Rollout,
    inverter_gap,
    policy_metrics,
    records,
    redrawn,
    reward_metrics,
    roll_out,
    scored,
)
from agents.training.saved import saved
from agents.training.session import Session
from agents.training.tensorboard import LAYOUT, end_metrics, sample_text
from envs.streams import seed_of
from rewards.registry import reward_info

GAP_TASKS = 15  # tasks whose candidates are scored with the base model as inverter as well
Values = dict[str, float | None]
Accepted = tuple[Sequence[Rollout], Sequence[int]]  # what was written, and positions of positive examples


class Loop:
    """A run from its first or next cycle to its last; use it as a context manager.

    Attributes:
        cycle: the current cycle.
        memory: plain JSON values of the trainer that a checkpoint keeps; what the last one kept.
        save: writes more files of the trainer into the checkpoint's folder, next to the adapter.
        restored: the folder of the checkpoint that the run resumes from; None at its start.
    """

    def __init__(self, config: TrainConfig, session: Session) -> None:
        self.config, self.session = config, session
        state = session.state
        # Recorded, because the file of a blend may be gone when the run is read.
        about = reward_info(config.reward)
        self._learns_from_verdicts = about.labelled and not config.supervised
        labels = session.policy.labels
        self.results: dict[str, Any] = {
            "cycles": [],
            "labels": {"start": labels, "end": labels},
            **state.get("results", {}),
            "labelled": about.from_labels or config.supervised,
            "config": saved(config),
        }
        self.memory: dict[str, Any] = dict(state.get("memory", {}))
        self.save: Callable[[Path], None] | None = None
        self.restored = session.checkpoint
        self.cycle, self.step = int(state.get("cycle", 0)), int(state.get("step", 0))
        self._monitor = Monitor(**state.get("monitor", {}))
        self._display = Display(config.cycles, self.cycle)
        self._seconds: dict[str, float] = {}
        self._began = self._saved_in = 0.0

    def __enter__(self) -> Loop:
        self._display.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)

    @property
    def last(self) -> int:
        """The last cycle."""
        return int(self.results.get("stopped", self.config.cycles))

    # What a trainer calls, in this order

    def cycles(self) -> Iterator[int]:
        """The cycles that are left. A new run is evaluated first, before any training."""
        if self.session.state:
            # The file is of a later cycle where the run went back, or it is damaged.
            self.session.run.write_json("progress.json", self.results)
        else:
            self._start()
        while self.cycle < self.last:  # which a trainer may move
            self.cycle, self._began, self._seconds = self.cycle + 1, time.perf_counter(), {}
            yield self.cycle

    def collect(self, phase: str, tasks: int | None = None, drawing: Drawing = AS_THEY_COME) -> Batch:
        """tasks x candidates of this cycle, written and scored; before the update with `--redraw`.

        Args:
            tasks: how many; those of the configuration, if not given.
            drawing: how the candidates are drawn, the temperature aside.
        """
        self._display.phase(self.cycle, phase)
        policy = self.session.policy

        def write(count: int, *turn: object) -> Batch:
            return roll_out(
                policy,
                self.session.source,
                self.session.reward,
                tasks=count,
                candidates=self.config.candidates,
                temperature=self.config.temperature,
                max_new_tokens=self.config.max_new_tokens,
                stream=(self.config.seed, self.cycle, phase, *turn),
                drawing=drawing,
                watching=self.config.reward_watches,
            )

        with policy.usage.stopped() if phase == "after" else contextlib.nullcontext():
            batch = write(tasks or self.config.tasks)
            if phase == "before":
                batch = redrawn(batch, self.config.redraw, lambda count, turn: write(count, "redraw", turn))
        if phase == "after":  # it only measures
            self.spent({"evaluate": math.fsum(batch.seconds.values())})
        else:
            self.spent(batch.seconds)
        return batch

    def score(self, groups: Sequence[Group]) -> Batch:
        """Candidates that an earlier run wrote, scored by this run's reward."""
        self._display.phase(self.cycle, "before")
        started = time.perf_counter()
        seed = seed_of(self.config.seed, self.cycle, "before", "reward")
        tasks_P = [group.task for group in groups]
        written_P_G = [group.written for group in groups]
        batch = Batch(scored(self.session.reward, tasks_P, written_P_G, seed))
        self.spent({"generate": 0.0, "reward": time.perf_counter() - started})
        return batch

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around the update: counts its time, and moves the averaged adapter after it."""
        with self.timed("train"):
            yield
            if self.config.inverter == "ema":
                self.session.policy.update_ema(EMA)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Shows what is done and counts its time as `time/<name>`, minus what other names count."""
        self._display.phase(self.cycle, name)
        started, counted = time.perf_counter(), math.fsum(self._seconds.values())
        yield
        others = math.fsum(self._seconds.values()) - counted
        self.spent({name: time.perf_counter() - started - others})

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Counts seconds of this cycle as `time/<name>`. Inside `training` they do not count as training."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value

    def line(self, text: str) -> None:
        """Prints a line about this cycle."""
        self._display.line(f"cycle {self.cycle}: {text}")

    def finish(
        self,
        batch: Batch,
        trained: Values,
        accepted: Sequence[int] | None = None,
        after: tuple[Batch, Sequence[int]] | None = None,
        best: int | None = None,
        stop: bool = False,
        others: Mapping[str, Accepted] = MappingProxyType({}),
    ) -> None:
        """Ends the cycle: evaluates, watches, logs and saves.

        Args:
            batch: the candidates that were learnt from.
            trained: what the update logs: `train/*` and the like.
            accepted: positions in it of the positive examples, for a trainer that chooses some.
            after: as many candidates of fresh tasks, which only measure, and positions of those it would
                accept.
            best: the best cycle so far, for a trainer that has a measure of its own: its adapter is kept.
            stop: ends the run after this cycle.
            others: more that was written for the tasks, by its phase in the log, with the positions of the
                positive examples.
        """
        session = self.session
        if self._learns_from_verdicts:
            session.policy.labels += batch.tasks_scored
        self.results["labels"]["end"] = session.policy.labels
        if best is not None:
            session.run.protected = {best}
        if stop:
            self.results["stopped"] = self.cycle
        with session.policy.usage.stopped():
            with self.timed("evaluate"):
                held_out = session.evaluate(session.policy, session.reward, self.cycle)
            with self.timed("watch"):
                watched = after[0] if after else batch
                health = self._health(batch, watched)
                alarms, alarm_lines = self._monitor.observe({**health, **held_out})
            with self.timed("evaluate_whole"):
                self._evaluate_whole(best)

        self.step += len(batch.rollouts) + len(batch.redrawn)
        entry = self._entry(batch, accepted, after, held_out)
        self.results["cycles"].append(entry)
        phases: dict[str, Accepted] = {"before": (batch.rollouts, accepted or ()), **others}
        if batch.redrawn:
            phases["redrawn"] = (batch.redrawn, ())
        if after:
            phases["after"] = (after[0].rollouts, after[1])
        for phase, (rollouts, positions) in phases.items():
            rows = records(rollouts, positions, cycle=self.cycle, phase=phase)
            session.run.append("rollouts", rows)
        dropped = {f"source/{reason}": float(count) for reason, count in batch.dropped.items()}
        metrics = {**reward_metrics(batch.rollouts), **_selection(entry), **dropped, **trained}
        if self.config.redraw:
            metrics["select/redrawn"] = float(len(batch.redrawn))
        session.run.scalars(self.step, self.cycle, {**metrics, **health, **alarms, **held_out})
        self._show(watched, alarm_lines)
        self._log_times()
        self._checkpoint()
        self._display.finished(self.cycle, cycle_facts(entry))

    def end(self) -> int:
        """Writes the results and shows them; 0, as an exit status."""
        run = self.session.run
        run.write_json("self_improvement_results.json", self.results)
        evaluate = self.session.evaluate
        notes = [note for note in (evaluate.note, evaluate.afterwards()) if note]
        show_results(self.config, self.results, run, "\n".join(notes))
        return 0

    # The steps of a cycle

    def _start(self) -> None:
        """The evaluation before any training, and its checkpoint."""
        session = self.session
        session.run.layout(LAYOUT)
        if reward_info(self.config.reward).labelled:  # a verdict on each probe chooses the checkpoint
            session.policy.labels += len(session.probes)
        self._display.phase(0, "evaluate")
        with session.policy.usage.stopped():
            first = session.evaluate(session.policy, session.reward, 0)
            self.results["eval"] = {"start": session.evaluate.whole(session.policy, session.reward, 0)}
            session.run.scalars(0, 0, {**first, **self._keep()})
        self._display.line("start        " + held_out_facts(first))
        if session.evaluate.note:
            self._display.line(session.evaluate.note)
        self._checkpoint()

    def _health(self, batch: Batch, watched: Batch) -> Values:
        """Measures of the policy after this cycle; the monitor notes the scores of the newest candidates."""
        if watched is not batch and not self._monitor.scores:
            self._monitor.scored(batch.groups)  # those of the untrained policy
        self._monitor.scored(watched.groups)
        policy, reward = self.session.policy, self.session.reward
        seed = seed_of(self.config.seed, self.cycle, "gap")
        return {
            **policy_metrics(policy, watched.groups),
            **text_metrics(watched.rollouts),
            **self._keep(),
            "reward/current_minus_base": inverter_gap(reward, watched.groups[:GAP_TASKS], seed),
        }

    def _keep(self) -> Values:
        """The score that `--keep best` compares; protects the best cycle's checkpoint."""
        config, session = self.config, self.session
        if config.keep != "best":
            return {}
        probes = probe(session.policy, session.reward, session.probes, config.max_new_tokens, config.seed)
        score = self._monitor.keep(self.cycle, probes)
        session.run.protected = {self._monitor.best}
        return {"keep/score": score}

    def _evaluate_whole(self, best: int | None) -> None:
        """After the last cycle evaluates the kept adapter on all held-out tasks; the policy is left alone."""
        self.results["eval"].pop("end", None)  # of a run that was extended
        self.results.pop("kept", None)
        if self.cycle < self.last:
            return
        policy, reward, run = self.session.policy, self.session.reward, self.session.run
        kept = self.cycle if best is None else best
        if self.config.keep == "best":
            kept = self._monitor.best
        weights, average = policy.snapshot(), policy.ema
        if kept != self.cycle:
            policy.load(run.intact_checkpoint(kept))
        try:
            self.results["kept"] = kept
            self.results["eval"]["end"] = self.session.evaluate.whole(policy, reward, kept)
        finally:
            policy.restore(weights)
            policy.ema = average

    def _entry(
        self,
        batch: Batch,
        accepted: Sequence[int] | None,
        after: tuple[Batch, Sequence[int]] | None,
        held_out: Values,
    ) -> dict[str, Any]:
        """This cycle in the results."""
        entry: dict[str, Any] = {"cycle": self.cycle, "before": summary(batch, accepted)}
        if after:
            entry["after"] = summary(*after)
            entry["improvement"] = _rise(entry["before"], entry["after"])
        entry["eval"] = held_out
        return entry

    def _show(self, watched: Batch, alarms: Sequence[str]) -> None:
        """What is to be read rather than plotted: samples, alarms, and at the end the settings."""
        run = self.session.run
        run.text(self.step, "samples", sample_text(watched.rollouts))
        for text in alarms:
            self.line(text)
            run.text(self.step, "alarms", f"cycle {self.cycle}: {text}")
        if self.cycle == self.last:
            run.hparams(self.results["config"], end_metrics(self.results))

    def _log_times(self) -> None:
        """Logs the time of each part. `rest` includes saving, which is counted a cycle later."""
        whole = time.perf_counter() - self._began
        times = {f"time/{name}": value for name, value in self._seconds.items()}
        times["time/rest"] = whole - math.fsum(self._seconds.values()) + self._saved_in
        self.session.run.scalars(self.step, self.cycle, times)

    def _checkpoint(self) -> None:
        """Writes progress.json and the checkpoint."""
        started = time.perf_counter()
        _add_totals(self.results)
        self.results["usage"] = asdict(self.session.policy.usage)
        self.session.run.write_json("progress.json", self.results)
        sizes = self.session.policy.batch_sizes
        state = {"results": self.results, "monitor": self._monitor.state, "batch_sizes": sizes}
        if self.memory:
            state["memory"] = self.memory
        self.session.run.commit(self.cycle, state, self._save)
        self._saved_in = time.perf_counter() - started

    def _save(self, folder: Path) -> None:
        self.session.policy.save(folder)
        if self.save is not None:
            self.save(folder)


def summary(batch: Batch, accepted: Sequence[int] | None) -> dict[str, Any]:
    """The numbers of a phase; without those of acceptance for a trainer that chooses none.

    `total_generated` leaves out the candidates of tasks that were drawn again: these are `redrawn`.
    `mean_score` is None where the reward abstained on all candidates.
    """
    numbers: dict[str, Any] = {"total_generated": len(batch.rollouts)}
    if batch.redrawn:
        numbers["redrawn"] = len(batch.redrawn)
    if accepted is not None:
        numbers["accepted"] = len(accepted)
        numbers["acceptance_rate"] = len(accepted) / len(batch.rollouts)
    values = [rollout.score.value for rollout in batch.rollouts if rollout.score.value is not None]
    numbers["mean_score"] = mean(values)
    return numbers


def _rise(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """By how much the mean score has risen; None where one of them is missing."""
    if before["mean_score"] is None or after["mean_score"] is None:
        return None
    return float(after["mean_score"] - before["mean_score"])


def _selection(entry: Mapping[str, Any]) -> Values:
    """What is logged of acceptance."""
    metrics: Values = {"select/acceptance": entry["before"].get("acceptance_rate")}
    if "after" in entry:
        metrics["reward/after"] = entry["after"]["mean_score"]
        metrics["select/acceptance_after"] = entry["after"]["acceptance_rate"]
    return metrics


def _add_totals(results: dict[str, Any]) -> None:
    """Adds the totals over all cycles so far."""
    phases = []
    for cycle in results["cycles"]:
        phases += [cycle[name] for name in ("before", "after") if name in cycle]
    results["total_generated"] = sum(phase["total_generated"] + phase.get("redrawn", 0) for phase in phases)
    if phases and all("accepted" in phase for phase in phases):
        results["total_accepted"] = sum(phase["accepted"] for phase in phases)
    if phases:
        results["improvement"] = _rise(phases[0], phases[-1])
