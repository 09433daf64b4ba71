"""Online DPO: of the candidates that the policy writes for a task, it learns to prefer the best scored to the worst scored.

    python -m agents.dpo --reward likelihood
    python -m agents.dpo --reward likelihood --reference base --beta 0.5

Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) lowers, for a pair (x, y+, y-) of a prompt and two commands,

    -log sigmoid(beta * ((log p(y+ | x) - log r(y+ | x)) - (log p(y- | x) - log r(y- | x))))

where p is the policy that trains and r a reference that does not. Here the pairs are the policy's own (Guo et al. 2024,
arXiv:2402.04792): each cycle it writes candidates, they are scored, the best and the worst of a task become a pair, and TRL's
`DPOTrainer` makes its passes over the pairs. The reference is the policy at the start of the cycle, or its base. The scores only
order the candidates: how far apart they are counts for `--margin` alone. To this is added, as Pang et al. (2024, arXiv:2404.19733) do
in iterative DPO, `--sft` times the negative log-likelihood of y+ per token: DPO alone takes probability from what was rejected, and
that need not go to what was chosen.

The optimizer is new each cycle, as the trainer is and, with `--reference cycle`, the objective: the adapter is all that a cycle hands on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.cli.command import run_command
from agents.training.config import TrainConfig
from envs.types import InputError

if TYPE_CHECKING:
    from agents.policy.policy import Policy
    from agents.training.rollouts import Batch
    from agents.training.session import Session

# TRL's name -> ours; both are means over the pairs of a step.
METRICS = {
    "loss": "train/loss",
    "rewards/margins": "train/margin",
    "rewards/accuracies": "train/pair_accuracy",
    "rewards/chosen": "train/chosen_reward",
    "rewards/rejected": "train/rejected_reward",
    "logps/chosen": "train/chosen_logprob",
    "logps/rejected": "train/rejected_logprob",
}


@dataclass(frozen=True)
class Config(TrainConfig):
    """Online DPO: the model learns to prefer, of its own commands for a task, the best scored to the worst scored."""

    beta: float = 0.1
    """How strongly the policy is held to the reference: the loss sees beta times the log-ratios of the two."""
    margin: float = 0.02
    """Least difference of score between the two commands of a pair; equal scores never make one."""
    reference: Literal["cycle", "base"] = "cycle"
    """What the policy is held to: itself at the start of the cycle, or its base, the adapter off."""
    sft: float = 1.0
    """Weight of the negative log-likelihood of the chosen commands, per token, in the loss; 0 is DPO alone."""
    batch_size: int = 4
    """Pairs in a training step."""
    epochs: int = 2
    """Passes over the pairs of a cycle."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter; in [0, 1). It would make policy and reference differ at random, so there is none by default."""

    def check(self) -> None:
        """Raises InputError for a value out of range, an unknown reward or a faulty domain."""
        super().check()
        self._require("candidates", self.candidates > 1, "must be 2 or more: a pair is made of two")
        self._require("beta", 0 < self.beta < math.inf, "must be above 0")
        for name in ("margin", "sft"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "must be 0 or more")


def pairs_of(
    values_P_G: Sequence[Sequence[float | None]], texts_P_G: Sequence[Sequence[str]], margin: float
) -> list[tuple[int, int]]:
    """Positions of (best, worst) of each task that makes a pair, counted task after task; of equals the first one written.

    Args:
        values_P_G: scores, G candidates for each of P tasks; None for a candidate that is left out.
        texts_P_G: their commands; the two of a pair are never the same.
        margin: the least difference of score; equal scores never make a pair.
    """
    pairs, start = [], 0
    for values, texts in zip(values_P_G, texts_P_G, strict=True):
        scored = [(value, row) for row, value in enumerate(values) if value is not None]
        if scored:
            (best, chosen), (worst, rejected) = (
                max(scored, key=lambda pair: pair[0]),
                min(scored, key=lambda pair: pair[0]),
            )
            if best > worst and best - worst >= margin and texts[chosen] != texts[rejected]:
                pairs.append((start + chosen, start + rejected))
        start += len(values)
    return pairs


def pairs_of_batch(batch: Batch, margin: float) -> list[tuple[int, int]]:
    """The same for a batch; a command that was cut has no end to learn, whatever its score."""
    values = [
        [None if rollout.completion.truncated else rollout.score.value for rollout in group]
        for group in batch.groups
    ]
    return pairs_of(
        values, [[rollout.completion.text for rollout in group] for group in batch.groups], margin
    )


def main(config: Config) -> int:
    """Runs the cycles, or goes on with them, and prints the table of cycles and the run's folder."""
    try:
        from trl import DPOTrainer  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"online DPO trains with TRL, which cannot be imported ({error}): pip install '.[trl]'"
        ) from None
    from agents.training.session import open_session
    from rewards.labelled import Truth
    from rewards.registry import shown

    held = "itself at the start of the cycle" if config.reference == "cycle" else "its base"
    print(
        f"reward: {shown(config.reward)}, pairs of scores {config.margin:g} apart or more, the policy held to {held}",
        flush=True,
    )
    session = open_session("dpo", config, truth=Truth)
    try:
        return train(config, session)
    finally:
        session.run.close()


def train(config: Config, session: Session) -> int:
    """The loop itself."""
    from agents.training.loop import Loop

    with Loop(config, session) as loop:
        for cycle in loop.cycles():
            batch = loop.collect("before")
            pairs = pairs_of_batch(batch, config.margin)
            trained: dict[str, float | None] = {
                "train/pairs": float(len(pairs)),
                "select/pairs": len(pairs) / len(batch.groups),
            }
            with loop.training():
                if pairs:
                    trained |= prefer(
                        session.policy,
                        batch,
                        pairs,
                        config,
                        (config.seed, cycle, "train"),
                        session.run.folder,
                    )
                else:
                    loop.line(
                        "no task has two commands far enough apart, so nothing was trained: lower --margin, or raise --candidates"
                    )
            loop.finish(batch, trained, [chosen for chosen, _ in pairs])
    return loop.end()


def prefer(
    policy: Policy,
    batch: Batch,
    pairs: Sequence[tuple[int, int]],
    config: Config,
    stream_parts: tuple[object, ...],
    folder: Path,
) -> dict[str, float | None]:
    """Trains the adapter on pairs of a batch with TRL's `DPOTrainer`; what else TRL changes on the model is undone.

    Args:
        pairs: positions of (chosen, rejected) in the batch.
        stream_parts: (seed, cycle, purpose): order of the pairs and dropout derive from it.
        folder: TRL wants one to exist and writes nothing into it.

    Returns:
        `train/loss` and its like, means over the pairs at the moment they were trained on; rewards are beta times log-ratios,
        log-probabilities are sums over the command's tokens, nats. `train/score_margin`: mean difference of score.

    Raises:
        TrainingError: a loss or a gradient that is NaN or infinite, or weights that did not change.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from agents.rejection_sft import examples_of
    from agents.training.update import adamw, finite, updating
    from envs.streams import seed_of

    class Trainer(DPOTrainer):
        """TRL's, but for tokens: those that were generated are there already, and text need not give the same ones again."""

        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

        def _send_telemetry(self) -> None:
            """Sends nothing; there is a new trainer each cycle."""

    rollouts = batch.rollouts
    chosen, rejected = (examples_of(policy, [rollouts[pair[side]] for pair in pairs]) for side in (0, 1))
    rows = [
        {"prompt_ids": x, "chosen_ids": y, "rejected_ids": z}
        for (x, y), (_, z) in zip(chosen, rejected, strict=True)
    ]
    with updating(policy, config.lr, *stream_parts), as_it_was(policy):
        arguments = DPOConfig(
            output_dir=str(folder),
            beta=config.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, config.sft],
            learning_rate=config.lr,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            per_device_train_batch_size=config.batch_size,
            num_train_epochs=config.epochs,
            seed=seed_of(*stream_parts, "trl") % 2**32,
            max_length=None,
            disable_dropout=False,  # --lora-dropout says what it is
            bf16=False,  # the policy is in the precision that it generates in
            gradient_checkpointing=False,
            use_cpu=policy.device.type == "cpu",
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
        )
        arguments._n_gpu = 1  # the policy is on one, however many there are
        parameters = policy.trainable()
        values = [parameter.data for parameter in parameters]
        trainer = Trainer(
            policy.model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(policy.tokenizer),
            optimizers=(adamw(parameters, config.lr, None), None),
        )
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = (
                value  # TRL makes the adapter of a 4-bit model bfloat16, in which small steps are lost
            )
        if config.reference == "base":
            policy.model.delete_adapter(
                "ref"
            )  # without this copy of the adapter TRL turns the adapter off for the reference
            policy.model.set_adapter("default")
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        steps = [row for row in trainer.state.log_history if "loss" in row]
    for number, row in enumerate(steps, 1):
        finite("loss", row["loss"], number)
        finite("gradient", row["grad_norm"], number)
    sizes = [
        min(config.batch_size, len(rows) - start)
        for _ in range(config.epochs)
        for start in range(0, len(rows), config.batch_size)
    ]
    means = {
        ours: math.fsum(n * row[its] for n, row in zip(sizes, steps, strict=True)) / sum(sizes)
        for its, ours in METRICS.items()
    }
    scores = [(rollouts[x].score.value, rollouts[y].score.value) for x, y in pairs]
    return {
        **means,
        "train/grad_norm": math.fsum(row["grad_norm"] for row in steps) / len(steps),
        "train/steps": float(len(steps)),
        "train/score_margin": math.fsum((best or 0.0) - (worst or 0.0) for best, worst in scores)
        / len(scores),
    }


@contextmanager
def as_it_was(policy: Policy) -> Iterator[None]:
    """After it the model is as before, its weights aside: TRL adds an adapter `ref`, wraps `forward` and changes configurations.

    Its warnings, of just these changes, are silenced meanwhile.
    """
    import warnings

    from transformers.utils import logging

    model, level = policy.model, logging.get_verbosity()
    parts: list[Any] = [model, model.get_base_model(), model.config, model.generation_config]
    before = [dict(vars(part)) for part in parts]
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        model.set_adapter("default")
        for part, attributes in zip(parts, before, strict=True):
            vars(part).clear()
            vars(part).update(attributes)


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
