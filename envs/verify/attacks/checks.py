"""What else must hold of what an attack sends back: each check says what does not hold, or nothing."""

from __future__ import annotations

from collections.abc import Callable

from envs.verify.sandbox.archive import Entry
from envs.verify.sandbox.run import MAX_TREE, Execution

Check = Callable[[Execution], str]


def nothing_more(execution: Execution) -> str:
    """Always holds."""
    return ""


def small_tree(execution: Execution) -> str:
    """The tree is missing or within the limit."""
    size = 0
    for entry in (execution.tree or {}).values():
        size += len(entry.content)
    return "" if size <= MAX_TREE else "an enormous tree"


def all_modes_zero(execution: Execution) -> str:
    """The tree is missing, or all of it came back as unreadable as it was."""
    for entry in (execution.tree or {}).values():
        if entry.mode != 0:
            return "the modes did not come back"
    return ""


def links_stay_links(execution: Execution) -> str:
    """Links to the host's files came back as links."""
    tree = execution.tree or {}
    for name in "lsru":
        if name not in tree or tree[name].kind != "link":
            return "the links did not come back as links"
    return ""


def pipe_is_other(execution: Execution) -> str:
    """The pipe came back as one."""
    entry = (execution.tree or {}).get("p")
    return "" if entry and entry.kind == "other" else "the pipe did not come back as one"


def unreadable_came_back(execution: Execution) -> str:
    """A file without permissions, in folders without permissions, came back with its content and modes."""
    tree = execution.tree or {}
    complete = tree.get("a/b/f") == Entry("file", 0, b"x\n") and "a/b" in tree and tree["a/b"].mode == 0
    return "" if complete else "the tree did not come back"


def odd_names_came_back(execution: Execution) -> str:
    """Five files whose names look like options came back."""
    tree = execution.tree or {}
    return "" if len(tree) == 5 and "--checkpoint=1" in tree else "the tree did not come back"


def forgery_is_a_file(execution: Execution) -> str:
    """A file that holds an archive came back as a file."""
    tree = execution.tree or {}
    return "" if len(tree) == 3 and "f" in tree and tree["f"].mode == 0 else "it was believed"


def library_came_back(execution: Execution) -> str:
    """The copied library came back."""
    return "" if "x.so" in (execution.tree or {}) else "the tree did not come back"


def status_only(*allowed: int) -> Check:
    """The exit status is one of these, or there is none."""

    def check(execution: Execution) -> str:
        if execution.exit_code in (None, *allowed):
            return ""
        return f"exit status {execution.exit_code}"

    return check
