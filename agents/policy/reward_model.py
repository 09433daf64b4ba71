"""A reward model: a LoRA adapter on a base model, with a scalar head on the last hidden state of an answer.

It is a model of its own beside the policy, so its base, its adapter and its numbers need not be the policy's.
A folder of it holds the adapter as PEFT writes it, the head, and a card (see `rewards.learnt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.policy.folders import check_adapter, check_model
from agents.policy.load import load_policy
from agents.policy.lora import saved_lora
from agents.policy.policy import Policy
from agents.policy.score import hidden_states, scalar_head
from agents.training import disk
from envs.messages import one_line
from envs.types import InputError, Prompt
from rewards.learnt import CARD, PREFIX, folder_of, read_card

HEAD_FILE = "reward_head.safetensors"


class RewardModel:
    """Scores commands. Called as `rewards.learnt.Scorer`.

    Args:
        reader: the base model with the adapter. It reads prompts as they come: no shots, no other prefill.
        beside: the policy whose run it is used in. What is scored counts there, and both halve their batches
            together where memory runs out, since a checkpoint keeps their sizes.
        seed: of the head's first weights.

    Attributes:
        head: a linear layer from the last hidden state to the score.
        center: is taken from every score.
    """

    def __init__(self, reader: Policy, beside: Policy, seed: int = 0) -> None:
        self.reader, self.beside, self.center = reader, beside, 0.0
        self.head = scalar_head(reader.model, "reward head", seed).to(reader.device)
        reader.scoring, reader.training = beside.scoring, beside.training

    @property
    def parameters(self) -> int:
        """How many it has, those of its base included."""
        own = sum(parameter.numel() for parameter in self.head.parameters())
        return own + sum(parameter.numel() for parameter in self.reader.model.parameters())

    def trainable(self) -> list[torch.nn.Parameter]:
        """The parameters of adapter and head."""
        return [*self.reader.trainable(), *self.head.parameters()]

    def sequences(self, prompts: Sequence[Prompt], commands: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt with the command after it and what ends an answer."""
        asked = self.reader.prompt_ids(prompts)
        answered = self.reader.answer_ids(prompts, commands)
        both = zip(asked, answered, strict=True)
        return [[*prompt, *answer, *self.reader.end] for prompt, answer in both]

    def forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Scores (B,) of B sequences, with gradients, before centering."""
        ends = torch.tensor([len(ids) - 1 for ids in sequences], device=self.reader.device)
        with hidden_states(self.reader.model) as states:
            # Logits are computed of the last token alone.
            self.reader.token_logits([(ids[:-1], ids[-1:]) for ids in sequences])
        last_B_H = states[0][torch.arange(len(sequences), device=ends.device), ends]
        scores_B: Tensor = self.head(last_B_H.float())[:, 0]
        return scores_B

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Scores of sequences, without gradients, before centering."""
        self.beside.usage.scored(sum(map(len, sequences)))

        def score(batch: Sequence[Sequence[int]], first: int) -> list[float]:
            with torch.no_grad():
                return [float(value) for value in self.forward(batch)]

        self.reader.model.eval()
        return self.reader.scoring.longest_first(sequences, len, score)

    def __call__(self, prompts: Sequence[Prompt], commands: Sequence[str]) -> list[float]:
        """Centered scores of commands after their prompts, in nats: log-odds against an average command."""
        return [value - self.center for value in self.scores(self.sequences(prompts, commands))]

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Writes adapter, head and card; the same model as the same bytes.

        Args:
            about: more for the card: `base`, `labels`, and how the model was made.
        """
        folder.mkdir()
        self.reader.save(folder)
        save_file(self.head.state_dict(), str(folder / HEAD_FILE))
        sums = {}
        for path in sorted(folder.iterdir()):
            sums[path.name] = disk.sha256(path)
        card = {**about, "dtype": self.reader.compute.dtype, "center": self.center, "sha256": sums}
        (folder / CARD).write_bytes(disk.as_json(card))

    def load(self, folder: Path) -> None:
        """Reads a folder that `save` wrote, of a model on the same base and of the same shape.

        Raises:
            InputError, ValueError: what is wrong with it.
        """
        card = read_card(f"{PREFIX}{folder}")
        self.reader.load(folder)
        try:
            tensors = load_file(str(folder / HEAD_FILE))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {HEAD_FILE}: {one_line(error)}") from None
        shapes = {name: tensor.shape for name, tensor in self.head.state_dict().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise ValueError(f"{HEAD_FILE} is of another model")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{HEAD_FILE} holds NaN or infinity")
        self.head.load_state_dict(tensors)
        self.center = card["center"]


def load_reward_model(reward: str, beside: Policy) -> RewardModel:
    """Loads the reward model of `--reward rm:FOLDER`.

    Raises:
        InputError: what is wrong with it, in one line.
    """
    shown = f"--reward {reward}"
    folder, card = folder_of(reward), read_card(reward)
    base = card["base"]
    check_model(base, f"{shown}: its base model {base}")
    check_adapter(folder, base, shown)
    try:
        reader = load_policy(
            base,
            lora=saved_lora(folder),
            load_in_4bit=bool(card.get("load_in_4bit")),
            dtype=card["dtype"],
            threads=beside.compute.threads,
        )
        model = RewardModel(reader, beside)
        model.load(folder)
    except (InputError, ValueError) as error:
        why = one_line(error).removeprefix(f"--adapter {folder}: ")
        raise InputError(f"{shown}: {why}: give another reward model") from None
    reader.model.requires_grad_(False)
    return model
