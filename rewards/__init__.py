"""How good a command is, without labels. Imports `envs` only. `rewards.registry` makes a reward by name.

A reward is called as `scores_P_G = reward(tasks_P, commands_P_G, seed=0)`: P tasks, G candidates of each. A
`Score` whose value is None abstains: the candidate is left out and counted, never given a default. One object
serves the environment and every trainer. What each reward computes, its source and its cost: docs/REWARDS.md.
"""
