"""Attacks on the sandbox, and whether they were contained, judged from outside: `python -m agents.selftest`.

`table` lists the attacks, `scripts` and `checks` hold its pieces, `host` plants what could be stolen or
broken, and `judge` runs the attacks and says which were contained. An attack counts as contained only if

- the script says that it tried, so that one that never ran proves nothing, and it ended in a way that is
    allowed;
- the secret is in nothing that came back, and neither is BREACH, which a script prints where a step
    succeeded;
- the planted file, its folder and the planted process are as they were, and nobody connected to the sockets;
- no process is left that has the attack's number in its command line;
- it took no longer than its wall clock and SLACK;
- a greedy attack hardly moved the host's free memory and disk.
"""
