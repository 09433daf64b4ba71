"""The whole idea in one file: write, reconstruct, score, keep the best, train on it, again.

    python -m examples.minimal_loop

A task goes in, three commands come out. The same model then says how likely the task is, given each command:
that is the reward. The best command of each task becomes a training example for a LoRA update. No label is
used. This takes about half a minute on one CPU core with the model that ships here.

Simpler than `agents.rejection_sft`: one domain, no run folder, no resume, no alarms, no intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from agents.policy.load import load_policy
from agents.policy.policy import Policy
from envs.domain import load_domain
from envs.messages import visible
from envs.prompts import forward_prompt, inverse_prompt
from envs.streams import seed_of
from envs.types import Completion, Score, Task
from rewards.registry import make_reward

DOMAIN = load_domain("shell")
CYCLES, TASKS, CANDIDATES = 5, 40, 3
KEEP = 0.8  # share of the tasks' best commands that is trained on
LR, BATCH = 1e-3, 4
LONGEST = 48  # tokens of a command


def main(cycles: int = CYCLES, tasks: int = TASKS, held_out: int = 100, seed: int = 0) -> dict[str, float]:
    """Runs the loop -> mean reward in the first and in the last cycle, held-out accuracy before and after."""
    policy = load_policy("embedded", seed=seed)
    reward = make_reward("likelihood", policy, [])
    before = accuracy(policy, held_out)
    print(f"held-out accuracy before: {before:.3f}")

    means = []
    for cycle in range(cycles):
        # Forward: P tasks, G commands for each. A cycle's random numbers depend on (seed, cycle) alone.
        tasks_P = DOMAIN.tasks("train", tasks, seed, cycle)
        prompts_P = [forward_prompt(task) for task in tasks_P]
        sampling_seed = seed_of(seed, cycle, "generate")
        written_P_G = policy.generate(
            prompts_P, CANDIDATES, temperature=0.7, max_new_tokens=LONGEST, seed=sampling_seed
        )

        # Inverse: how likely is the task, given the command? One forward pass; nothing is decoded.
        commands_P_G = [[completion.text for completion in row] for row in written_P_G]
        scores_P_G = reward(tasks_P, commands_P_G, seed=seed)
        means.append(mean_score(scores_P_G))

        examples = best_of_each_task(tasks_P, written_P_G, scores_P_G)
        loss = update(policy, examples, seed_of(seed, cycle, "train"))
        print(f"cycle {cycle + 1}: mean reward {means[-1]:.3f}, {len(examples)} examples, loss {loss:.3f}")
        show(policy, *examples[0])

    after = accuracy(policy, held_out)
    print(f"held-out accuracy after: {after:.3f}")
    return {"first": means[0], "last": means[-1], "before": before, "after": after}


def mean_score(scores_P_G: Sequence[Sequence[Score]]) -> float:
    """Mean over all candidates on which the reward did not abstain."""
    values = [score.value for row in scores_P_G for score in row]
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def best_of_each_task(
    tasks_P: Sequence[Task],
    written_P_G: Sequence[Sequence[Completion]],
    scores_P_G: Sequence[Sequence[Score]],
) -> list[tuple[Task, Completion]]:
    """The best command of each task, then the top `KEEP` of these. Gated and cut commands are never kept."""
    bests: list[tuple[float, Task, Completion]] = []
    for task, completions, scores in zip(tasks_P, written_P_G, scores_P_G, strict=True):
        usable = []
        for completion, score in zip(completions, scores, strict=True):
            if score.value is not None and not score.closed and not completion.truncated:
                usable.append((score.value, completion))
        if usable:
            value, completion = max(usable, key=lambda pair: pair[0])
            bests.append((value, task, completion))
    bests.sort(key=lambda best: -best[0])
    kept = bests[: round(KEEP * len(bests))]
    return [(task, completion) for _, task, completion in kept]


def update(policy: Policy, examples: Sequence[tuple[Task, Completion]], seed: int) -> float:
    """One pass over the examples -> mean loss, nats per token. The prompt is not trained, the command is."""
    torch.manual_seed(seed)  # LoRA dropout
    end = policy.tokenizer.eos_token_id
    prompts = policy.prompt_ids([forward_prompt(task) for task, _ in examples])
    rows = []
    for prompt, (_, completion) in zip(prompts, examples, strict=True):
        rows.append((prompt, [*completion.token_ids, end]))

    optimizer = torch.optim.AdamW(policy.trainable(), lr=LR, weight_decay=0.0)
    losses = []
    policy.model.train()
    for start in range(0, len(rows), BATCH):
        logprobs_B_T, mask_B_T = policy.token_logprobs(rows[start : start + BATCH])
        loss = -logprobs_B_T[mask_B_T].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    policy.model.eval()
    return sum(losses) / len(losses)


def show(policy: Policy, task: Task, completion: Completion) -> None:
    """Prints a training example with what the model reconstructs from it."""
    prompt = inverse_prompt(task, completion.text)
    [[reconstruction]] = policy.generate([prompt], temperature=0.0, max_new_tokens=64)
    print(visible(f"    task            {task.text}"))
    print(visible(f"    command         {completion.text}"))
    print(visible(f"    reconstruction  {reconstruction.text}"))


def accuracy(policy: Policy, count: int) -> float:
    """Evaluation only, and the only place that knows what is right: held-out tasks, greedy, executed."""
    from envs.verify.truth import verify

    tasks = DOMAIN.tasks("heldout", count, "minimal")
    written = policy.generate(
        [forward_prompt(task) for task in tasks], temperature=0.0, max_new_tokens=LONGEST
    )
    verdicts = verify(tasks, [row[0].text for row in written])
    executed = [verdict for verdict in verdicts if verdict.status != "not_executed"]
    correct = [verdict for verdict in executed if verdict.status == "correct"]
    return len(correct) / max(1, len(executed))


if __name__ == "__main__":
    main()
