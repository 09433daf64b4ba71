"""What is still to do for a study: training runs and evaluations, as jobs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from agents.cli.display import number
from agents.studies.folder import (
    cycles_done,
    has_report,
    is_finished,
    run_folder,
    settings_file,
    theory_folder,
    transfer_folder,
)
from agents.studies.jobs import Job, command_of
from agents.studies.plan import Arm, Plan, as_yaml
from agents.studies.runs import read_run

BUDGET = 10 * 50 * 3  # candidates of a run of the documented budget, which has weight 1
EVALUATION = 0.15  # weight of an evaluation of one domain
THEORY_FLAGS = ("inverter", "inverse_temperature", "embedder", "temperature", "max_new_tokens")
Commands = Mapping[str, type]  # name of a command -> its Config


def all_jobs(plan: Plan, folder: Path, commands: Commands) -> list[Job]:
    """Everything that is not done yet, in the order in which it is started.

    Args:
        commands: `evaluate` and the trainers.
    """
    of_run: dict[str, list[Job]] = {}
    for arm, seed in order(plan):
        of_run[_training(arm, seed)] = jobs_of(plan, arm, seed, folder, commands)
    to_train = {job.name: job for own in of_run.values() for job in own}
    jobs = []
    for arm, seed in order(plan):
        own = of_run[_training(arm, seed)]
        writer = plan.arms[arm.candidates_of or arm.name]
        if arm.candidates_of is not None and _training(writer, seed) in to_train:
            to_train[_training(writer, seed)].then.extend(own)  # the candidates have yet to be written
        else:
            jobs += own
    return jobs + theory_jobs(plan, folder, commands)


def order(plan: Plan) -> list[tuple[Arm, int]]:
    """All runs, seed by seed over all arms, so a study that is stopped has some runs of each arm."""
    longest = max(len(arm.seeds) for arm in plan.arms.values())
    runs = []
    for place in range(longest):
        for arm in plan.arms.values():
            if place < len(arm.seeds):
                runs.append((arm, arm.seeds[place]))
    return runs


def names_of(plan: Plan) -> set[str]:
    """The names of all jobs that a study may have."""
    names = {_before_training(name) for name in plan.theory}
    for arm, seed in order(plan):
        names |= {_training(arm, seed), _transfer(arm, seed)}
    return names


def _training(arm: Arm, seed: int) -> str:
    return f"{arm.name} s{seed}"


def _transfer(arm: Arm, seed: int) -> str:
    return f"evaluate {arm.name} s{seed}"


def _before_training(name: str) -> str:
    return f"evaluate {name} before training"


def jobs_of(plan: Plan, arm: Arm, seed: int, folder: Path, commands: Commands) -> list[Job]:
    """What is still to do for one run: the training, and after it the evaluation on other domains."""
    run, cycles = run_folder(folder, arm.name, seed), int(arm.resolved["cycles"])
    report = transfer_folder(folder, arm.name, seed)
    finished = is_finished(run, cycles)
    if not finished:
        # An evaluation of the run before it was given more cycles is out of date.
        (report / "report.html").unlink(missing_ok=True)
    log = folder / "logs" / f"{arm.name}-s{seed}"
    evaluations = []
    if arm.evaluate_on and not has_report(report):
        words = [str(run), "--domain", ",".join(arm.evaluate_on), "--tasks", str(plan.transfer_tasks)]
        # Only the accuracy is used, so one sample and the reward that costs nothing are enough.
        words += ["--samples", "1", "--reward", "random", "--output", str(report), "--json"]
        command = command_of(commands["evaluate"], *words)
        weight = EVALUATION * len(arm.evaluate_on)
        evaluations = [Job(_transfer(arm, seed), command, Path(f"{log}-transfer"), weight)]
    if finished:
        return evaluations
    candidates = cycles * arm.resolved["tasks"] * arm.resolved["candidates"]
    training = Job(
        _training(arm, seed),
        command_of(commands[arm.trainer], *_training_words(arm, seed, folder)),
        log,
        candidates / BUDGET * (1 - cycles_done(run) / cycles),
        share=partial(_share_done, run, cycles),
        facts=partial(_facts, run),
        then=evaluations,
    )
    return [training]


def _training_words(arm: Arm, seed: int, folder: Path) -> list[str]:
    """The flags that start a run, or resume it if it is there."""
    run = run_folder(folder, arm.name, seed)
    if (run / "config.yaml").is_file():
        return ["--resume", str(run), "--cycles", str(arm.resolved["cycles"])]
    settings = settings_file(folder, arm.name)
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(as_yaml(arm.settings), encoding="utf-8")
    place = ["--output", str(run.parent), "--name", run.name]
    if arm.candidates_of is not None:
        place += ["--rollouts", str(run_folder(folder, arm.candidates_of, seed))]
    return ["--config", str(settings), "--seed", str(seed), *place]


def _share_done(run: Path, cycles: int) -> float:
    return cycles_done(run) / cycles


def _facts(run: Path) -> str:
    record = read_run(run)
    start, end = record.whole("start", "greedy"), record.whole("end", "greedy")
    return f"held-out accuracy {number(start)} -> {number(end)}"


def theory_jobs(plan: Plan, folder: Path, commands: Commands) -> list[Job]:
    """The evaluation, in both directions, of the models that arms start from."""
    jobs = []
    for name in plan.theory:
        report = theory_folder(folder, name)
        if has_report(report):
            continue
        settings = plan.arms[name].resolved
        words = []
        for key in ("model", "domain", "reward", "adapter", *THEORY_FLAGS):
            if settings[key] is not None:
                words += [f"--{key.replace('_', '-')}", str(settings[key])]
        words += ["--gates" if settings["gates"] else "--no-gates", "--output", str(report), "--json"]
        command = command_of(commands["evaluate"], *words)
        log = folder / "logs" / f"{name}-theory"
        jobs.append(Job(_before_training(name), command, log, 3 * EVALUATION))
    return jobs
