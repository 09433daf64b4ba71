"""What else must hold of what an attack sends back: each check says what does not hold, or nothing."""

from __future__ import annotations

from collections.abc import Callable

from envs.verify.sandbox.archive import Entry
from envs.verify.sandbox.run import MAX_TREE, Execution

Check = Callable[[Execution], str]


def _unless(holds: bool, message: str) -> str:
    return "" if holds else message


def nothing_more(execution: Execution) -> str:
    """Always holds."""
    return ""


def small_tree(execution: Execution) -> str:
    """The tree is missing or within the limit."""
    size = 0
    for entry in (execution.tree or {}).values():
        size += len(entry.content)
    return _unless(size <= MAX_TREE, "an enormous tree")


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
    tree = execution.tree or {}
    return _unless("p" in tree and tree["p"].kind == "other", "the pipe did not come back as one")


def unreadable_came_back(execution: Execution) -> str:
    """A file without permissions, in folders without permissions, came back with its content and modes."""
    tree = execution.tree or {}
    complete = tree.get("a/b/f") == Entry("file", 0, b"x\n") and "a/b" in tree and tree["a/b"].mode == 0
    return _unless(complete, "the tree did not come back")


def odd_names_came_back(execution: Execution) -> str:
    """Five files whose names look like options came back."""
    tree = execution.tree or {}
    return _unless(len(tree) == 5 and "--checkpoint=1" in tree, "the tree did not come back")


def forgery_is_a_file(execution: Execution) -> str:
    """A file that holds an archive came back as a file."""
    tree = execution.tree or {}
    return _unless(len(tree) == 3 and "f" in tree and tree["f"].mode == 0, "it was believed")


def library_came_back(execution: Execution) -> str:
    """The copied library came back."""
    return _unless("x.so" in (execution.tree or {}), "the tree did not come back")


def status_only(*allowed: int) -> Check:
    """The exit status is one of these, or there is none."""

    def check(execution: Execution) -> str:
        if execution.exit_code in (None, *allowed):
            return ""
        return f"exit status {execution.exit_code}"

    return check
