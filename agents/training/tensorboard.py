"""What TensorBoard shows of a run: curves, their layout, sample texts, and the HPARAMS page."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.training import disk
from envs.messages import visible

if TYPE_CHECKING:
    from agents.training.rollouts import Rollout

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "is the gain real?": {
        "score and held-out accuracy": ["Multiline", ["reward/mean", "eval/greedy", "eval/pass@1"]],
        "does the score find correct commands? (AUC)": ["Multiline", ["eval/auc", "eval/auc_within"]],
        "score minus held-out accuracy": ["Multiline", ["eval/reward_minus_truth"]],
    },
    "training": {
        "score before and after": ["Multiline", ["reward/mean", "reward/after"]],
        "acceptance": ["Multiline", ["select/acceptance", "select/acceptance_after"]],
        "loss": ["Multiline", ["train/loss", "validation/loss"]],
        "new preferences that a reward model orders right": ["Multiline", ["preference/accuracy"]],
    },
    "health": {
        "alarms": ["Multiline", ["alarm/.*"]],
        "diversity": ["Multiline", ["policy/distinct", "policy/distinct_2", "policy/copied"]],
        "drift": ["Multiline", ["policy/kl", "policy/entropy"]],
        "length": ["Multiline", ["policy/length"]],
        "private code? score with the current policy as inverter minus the base model": [
            "Multiline",
            ["reward/current_minus_base"],
        ],
    },
    "time": {
        "seconds per cycle": [
            "Multiline",
            ["time/generate", "time/reward", "time/train", "time/evaluate", "time/watch", "time/rest"],
        ]
    },
}


class Events:
    """The event files of one run. The writer is made on first use, because that imports torch.

    Args:
        folder: where they are.

    Attributes:
        purge_step: TensorBoard drops older events from this step on: a resumed run writes them again. It pays
            no heed to the first start that it reads of, so a new run has one too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.purge_step = 0
        self._open: Any = None

    @property
    def _writer(self) -> Any:
        if self._open is None:
            from torch.utils.tensorboard import SummaryWriter

            _put_into_the_past(self.folder)
            self._open = SummaryWriter(str(self.folder), purge_step=self.purge_step)
        return self._open

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point on the curve of each metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        """A text, in Markdown."""
        self._writer.add_text(tag, text, global_step=step)

    def hparams(self, settings: Mapping[str, Any], metrics: Iterable[str], step: int) -> None:
        """The settings on the HPARAMS page, next to the last values of the named metrics.

        `SummaryWriter.add_hparams` is not used: it opens a second writer, and even with `run_name="."` it
        adds a point at step 0 to the curve of each metric. The summaries that it makes belong in the
        run's own events.
        """
        from torch.utils.tensorboard.summary import hparams as summaries

        plain: dict[str, Any] = {}
        for name, value in settings.items():
            plain[name] = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
        shown: Any = dict.fromkeys(metrics, 0.0)
        for summary in summaries(plain, shown):  # type: ignore[no-untyped-call, unused-ignore]
            self._writer.file_writer.add_summary(summary, step)

    def layout(self, layout: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """The CUSTOM SCALARS page: {category: {chart: ["Multiline", [tag, ...]]}}."""
        self._writer.add_custom_scalars(dict(layout))

    def repair(self, rows: Sequence[Mapping[str, float]]) -> bool:
        """Writes the curves again where TensorBoard cannot read all of them any more -> whether it did.

        Args:
            rows: those of the run's logs up to `purge_step`: every point that the curves must have.
        """
        points = {(int(row["step"]), tag) for row in rows for tag in row if tag not in ("step", "cycle")}
        if points <= _points(self.folder):
            return False
        disk.remove(self.folder)
        self.layout(LAYOUT)
        for row in rows:
            values = {tag: value for tag, value in row.items() if tag not in ("step", "cycle")}
            self.scalars(int(row["step"]), values)
        return True

    def flush(self) -> list[Path]:
        """Writes what is buffered -> the files, if anything was written."""
        if self._open is None:
            return []
        self._open.flush()
        return sorted(self.folder.iterdir())

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _points(folder: Path) -> set[tuple[int, str]]:
    """(step, name) of all that TensorBoard can read: from a damaged record on, the rest of a file is lost."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = set()
    for path in folder.glob("events.out.tfevents.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            found |= {(event.step, value.tag) for value in event.summary.value}
    return found


def _put_into_the_past(folder: Path) -> None:
    """Renames event files from now or later, as a clock that was set back leaves them, keeping their order.

    TensorBoard reads files by name, which begins with the second they were made in. What a resumed run
    writes must come last, or it cannot drop the steps that it repeats.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    for number, path in enumerate(files):
        latest = int(time.time()) - len(files) + number
        second = re.match(r"events\.out\.tfevents\.(\d+)", path.name)
        if second and int(second[1]) > latest:
            path.rename(folder / path.name.replace(second[1], f"{latest:010d}", 1))


def sample_text(rollouts: Sequence[Rollout], count: int = 8) -> str:
    """A Markdown table of the first candidates of a few tasks."""
    step = max(1, len(rollouts) // count)
    rows = ["| task | command | reconstruction | score |", "|---|---|---|---|"]
    for rollout in rollouts[::step][:count]:
        value = rollout.score.value
        score = "abstained" if value is None else f"{value:.3f}"
        task, command = as_text(rollout.task.text), as_text(rollout.command)
        reconstruction = as_text(rollout.score.reconstruction or "")
        rows.append(f"| {task} | <code>{command}</code> | {reconstruction} | {score} |")
    return "\n".join(rows)


def as_text(text: str) -> str:
    """A text that Markdown and HTML show as it is: TensorBoard would fetch an image that a model wrote."""
    letters = []
    for letter in visible(text):
        letters.append(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};")
    return "".join(letters)


def end_metrics(results: Mapping[str, Any]) -> list[str]:
    """The metrics that the HPARAMS page shows next to the settings."""
    measured = results["cycles"][-1]["eval"]
    return ["reward/mean", *(name for name in ("eval/greedy", "eval/pass@1", "eval/auc") if name in measured)]
