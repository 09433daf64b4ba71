"""What TensorBoard shows beside the curves: a layout, sample texts, and the numbers of the HPARAMS page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.training.rollouts import Rollout

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "is it real?": {
        "reward against truth": ["Multiline", ["reward/mean", "eval/greedy", "eval/pass@1"]],
        "does the reward find the right ones?": ["Multiline", ["eval/auc", "eval/auc_within"]],
        "the reward less the truth": ["Multiline", ["eval/reward_minus_truth"]],
    },
    "training": {
        "score before and after": ["Multiline", ["reward/mean", "reward/after"]],
        "acceptance": ["Multiline", ["select/acceptance", "select/acceptance_after"]],
        "loss": ["Multiline", ["train/loss"]],
    },
    "health": {
        "alarms": ["Multiline", ["alarm/.*"]],
        "diversity": ["Multiline", ["policy/distinct", "policy/distinct_2", "policy/copied"]],
        "drift": ["Multiline", ["policy/kl", "policy/entropy"]],
        "length": ["Multiline", ["policy/length"]],
        "a private code? score under the model less under its base": [
            "Multiline",
            ["reward/current_minus_base"],
        ],
    },
    "time": {
        "seconds a cycle": [
            "Multiline",
            ["time/generate", "time/reward", "time/train", "time/evaluate", "time/watch", "time/rest"],
        ]
    },
}


def sample_text(rollouts: Sequence[Rollout], count: int = 8) -> str:
    """A Markdown table of the first candidates of a few tasks."""
    step = max(1, len(rollouts) // count)
    rows = [
        f"| {_cell(r.task.text)} | `{_cell(r.completion.text)}` | {_cell(r.score.reconstruction or '')} | "
        f"{'abstained' if r.score.value is None else format(r.score.value, '.3f')} |"
        for r in rollouts[::step][:count]
    ]
    return "\n".join(["| task | command | read back as | score |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def end_metrics(results: Mapping[str, Any]) -> list[str]:
    """The metrics that the HPARAMS page shows beside the settings."""
    return [
        "reward/mean",
        *(
            name
            for name in ("eval/greedy", "eval/pass@1", "eval/auc")
            if name in results["cycles"][-1]["eval"]
        ),
    ]
