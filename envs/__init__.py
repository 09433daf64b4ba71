"""Where tasks come from and what is true. Imports nothing else of this project; the reward is handed in.

Importing this package registers the Gymnasium environments `inversion/network-v0`, `shell-v0`, `sql-v0` and `all-v0`, so that
`gymnasium.make("envs:inversion/network-v0")` finds them.
"""

import gymnasium as _gymnasium

# The entry points are strings, which Gymnasium resolves only when an environment is made: this package stays below the agents, who
# know the policy and the rewards, and loads neither.
for _domain in ("network", "shell", "sql", "all"):
    _gymnasium.register(
        id=f"inversion/{_domain}-v0",
        entry_point="agents.policy.gym_factory:make_env",
        vector_entry_point="agents.policy.gym_factory:make_vector_env",
        kwargs={"domain": _domain},
    )
