"""Where tasks come from and what is true. Imports nothing else of this project; the reward is handed in.

Importing this package registers the Gymnasium environments `inversion/network-v0`, `shell-v0`, `sql-v0` and
`all-v0`, which `gymnasium.make("envs:inversion/network-v0")` then finds.
"""

import gymnasium as _gymnasium

# Gymnasium resolves these strings when an environment is made; no other string names a module of ours. The
# factory knows the policy and the rewards, so this package must not import it.
for _domain in ("network", "shell", "sql", "all"):
    _gymnasium.register(
        id=f"inversion/{_domain}-v0",
        entry_point="agents.policy.gym_factory:make_env",
        vector_entry_point="agents.policy.gym_factory:make_vector_env",
        kwargs={"domain": _domain},
    )
