"""Imports go one way, envs <- rewards <- agents, and what is right is known to evaluation and pre-training alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("envs", "rewards", "agents")
# The only importers of envs.verify, direct or through others. agents.bench times the sandbox, agents.selftest
# attacks it.
MAY_KNOW = {"agents.bench", "agents.evaluate", "agents.pretrain", "agents.selftest"}
MAY_KNOW |= {"agents.pretraining.card", "agents.pretraining.corpus"}
MAY_KNOW |= {
    f"agents.evaluation.{name}" for name in ("answers", "heldout", "measure", "report", "statistics")
}
MAY_KNOW |= {
    "rewards.labelled"
}  # the upper bound `truth`: a reward with labels, named as such wherever it is shown
# What hands that reward in: training and the rewards themselves cannot reach it.
MAY_KNOW |= {f"agents.{name}" for name in ("rejection_sft", "ppo", "dpo", "grpo", "rloo", "export", "study")}
SPEC_NAMES = {"load_spec", "IntentSpec", "DomainSpec"}  # what holds the reference commands of a domain's file
# Modules that are named in strings, which the import graph cannot see, and that lie higher up or know what is right.
DOORS = {
    "envs": {"agents.policy.gym_factory"},  # resolved by Gymnasium when an environment is made
}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module in the packages under `root`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> our own modules that importing it, or calling its functions, may import: those of whole packages on the way included."""
    known = modules(root)
    return {
        name: {
            known_name
            for wanted in _wanted(
                ast.parse(path.read_text(encoding="utf-8")), name, path.name == "__init__.py"
            )
            for known_name in _with_parents(wanted)
            if known_name in known and known_name != name
        }
        for name, path in known.items()
    }


def _wanted(tree: ast.AST, name: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every module that is imported by `start`, or by what it imports, and so on."""
    found: set[str] = set()
    todo = [start]
    while todo:
        for name in graph[todo.pop()] - found:
            found.add(name)
            todo.append(name)
    return found


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports against the one way."""
    return sorted(
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if PACKAGES.index(other.split(".")[0]) > PACKAGES.index(name.split(".")[0])
    )


def in_cycles(graph: dict[str, set[str]]) -> set[str]:
    """Modules that import themselves by way of others; an import in a function counts."""
    return {name for name in graph if name in reached(graph, name)}


def knowing(graph: dict[str, set[str]]) -> set[str]:
    """Modules outside envs.verify that reach it."""
    return {
        name
        for name in graph
        if not under(name, "envs.verify")
        and any(under(other, "envs.verify") for other in reached(graph, name))
    }


def using(root: Path, names: Iterable[str]) -> dict[str, set[str]]:
    """Module -> those of `names` that its code mentions, in whatever way: as a name, an attribute, an import or a whole string."""
    found = {}
    for module, path in modules(root).items():
        mentioned: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.alias):
                mentioned |= {node.name, *node.name.split(".")}
            else:
                mentioned |= {
                    str(value)
                    for value in (getattr(node, field, None) for field in ("id", "attr", "name", "value"))
                    if value
                }
                if isinstance(node, ast.Constant):
                    mentioned.add(str(node.value))
        if used := mentioned & set(names):
            found[module] = used
    return found


def doors(root: Path) -> dict[str, set[str]]:
    """Module -> our own modules that it names in strings, as `pkgutil.resolve_name`, `importlib` and entry points want them."""
    known = modules(root)
    pattern = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+(:[\w.]+)?")
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and pattern.fullmatch(node.value)
            ):
                name = node.value.partition(":")[0]
                while name not in known and "." in name:
                    name = name.rpartition(".")[0]
                if name in known:
                    found.setdefault(module, set()).add(name)
    return found


def risky_doors(root: Path) -> dict[str, set[str]]:
    """Those doors that lead up, or out of training to what is right. Others, such as a command that starts another, do no harm."""
    graph, found = imports(root), {}
    right = knowing(graph) | {name for name in graph if under(name, "envs.verify")}
    for module, names in doors(root).items():
        up = {name for name in names if upward({module: {name}})}
        if risky := up | (names & right if module not in right else set()):
            found[module] = risky
    return found


def is_command(path: Path) -> bool:
    """Whether a file has a `main` and runs it when it is the program."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    return has_main and any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree.body
    )


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(ROOT)


def test_the_graph_is_that_of_this_project(graph: dict[str, set[str]]) -> None:
    assert {
        "envs",
        "envs.domain",
        "envs.verify",
        "rewards",
        "agents.evaluation.heldout",
        "agents.training.session",
    } <= set(graph)
    assert {"envs.domain", "envs.types", "envs"} <= graph["envs.source"]
    assert "rewards" in graph["agents.evaluate"]  # imported in a function


def test_imports_go_one_way(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == []


def test_no_module_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    assert in_cycles(graph) == set()


def test_only_evaluation_and_pre_training_reach_what_is_right(graph: dict[str, set[str]]) -> None:
    assert knowing(graph) == MAY_KNOW


def test_nothing_is_imported_behind_the_back_of_the_graph() -> None:
    assert risky_doors(ROOT) == DOORS


def test_reference_commands_are_read_in_one_place() -> None:
    users = {module for module in using(ROOT, SPEC_NAMES) if not under(module, "envs.verify")}
    assert users == {"envs.domain", "envs.grammar", "envs.schema"}


def test_files_in_agents_are_commands_and_folders_are_machinery() -> None:
    assert {path.name for path in (ROOT / "agents").glob("*.py")} > {
        "__init__.py",
        "evaluate.py",
        "pretrain.py",
        "rejection_sft.py",
    }
    for path in (ROOT / "agents").glob("*.py"):
        assert is_command(path) == (path.name != "__init__.py"), path
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert path.parent == ROOT / "agents" or not is_command(path), path


def test_training_does_not_load_what_is_right() -> None:
    code = (
        "import sys, agents.rejection_sft, rewards.registry, envs.source, agents.training.session, agents.training.update\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('envs.verify')) or 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_rewards_are_made_without_loading_what_is_right() -> None:
    code = (
        "import sys\n"
        "from envs.types import InputError, Task\n"
        "from rewards.registry import REWARDS, make_reward, shown\n"
        "pool = [Task('a', 'shell', 'count the lines of a.txt', 'wc'), Task('b', 'shell', 'sort the file b.txt', 'sort')]\n"
        "refused = []\n"
        "for name in REWARDS:\n"
        "    try:\n"
        "        make_reward(name, None, pool)\n"
        "    except InputError:\n"
        "        refused.append(name)\n"
        "    assert shown(name) == name + ' (labelled)' * REWARDS[name].labelled, name\n"
        "assert refused == ['truth']\n"
        "assert not any(name.startswith('envs.verify') for name in sys.modules)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr


# --- do these tests see what they should?


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project without fault."""
    files = {
        "envs/__init__.py": "",
        "envs/domain.py": "def load_spec(): ...",
        "envs/verify/__init__.py": "from envs.domain import load_spec",
        "envs/verify/shell.py": "from . import x",
        "rewards/__init__.py": "from envs import domain",
        "rewards/labelled.py": "from envs.verify import shell",
        "agents/__init__.py": "",
        "agents/evaluate.py": "import envs.verify\ndef main(): ...\nif __name__ == '__main__':\n    main()",
        "agents/bench.py": "def main():\n    from envs.verify import shell\nif __name__ == '__main__':\n    main()",
        "agents/selftest.py": "import envs.verify\ndef main(): ...\nif __name__ == '__main__':\n    main()",
        "agents/evaluation/__init__.py": "",
        "agents/evaluation/answers.py": "import envs.verify",
        "agents/evaluation/heldout.py": "from agents.evaluation import answers",
        "agents/evaluation/measure.py": "from agents.evaluation import answers",
        "agents/evaluation/statistics.py": "from agents.evaluation import heldout",
        "agents/evaluation/report.py": "from agents.evaluation import statistics",
        "agents/pretrain.py": "def main():\n    from envs.verify.shell import run\nif __name__ == '__main__':\n    main()",
        "agents/train.py": "import rewards\nfrom agents.training import loop\ndef main(): ...\nif __name__ == '__main__':\n    main()",
        "agents/training/__init__.py": "",
        "agents/training/loop.py": "import torch, json\nfrom .. import training\nfrom envs.domain import Domain",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_tree_without_fault_passes(tree: Path) -> None:
    graph = imports(tree)
    assert upward(graph) == []
    assert in_cycles(graph) == set()
    assert knowing(graph) == MAY_KNOW & set(graph)
    assert risky_doors(tree) == {}
    assert set(using(tree, SPEC_NAMES)) == {"envs.domain", "envs.verify"}
    assert graph["agents.training.loop"] == {"agents", "agents.training", "envs", "envs.domain"}


@pytest.mark.parametrize(
    ("file", "text", "wrong"),
    [
        ("envs/domain.py", "import rewards", "envs.domain imports rewards"),
        (
            "envs/domain.py",
            "def f():\n    from agents.training import loop",
            "envs.domain imports agents.training.loop",
        ),
        ("envs/__init__.py", "if TYPE_CHECKING:\n    import agents", "envs imports agents"),
        (
            "rewards/__init__.py",
            "try:\n    import agents.evaluate as e\nexcept ImportError: ...",
            "rewards imports agents.evaluate",
        ),
        (
            "rewards/new.py",
            "class C:\n    def f(self):\n        from agents import train",
            "rewards.new imports agents.train",
        ),
    ],
)
def test_a_planted_import_against_the_way_is_found(tree: Path, file: str, text: str, wrong: str) -> None:
    (tree / file).write_text(text)
    assert wrong in upward(imports(tree))


@pytest.mark.parametrize(
    ("file", "text", "culprits"),
    [
        ("rewards/labelled.py", "import rewards.new", {"rewards.labelled", "rewards.new"}),
        ("rewards/labelled.py", "def f():\n    from rewards import new", {"rewards.labelled", "rewards.new"}),
        ("rewards/__init__.py", "from rewards import new", {"rewards", "rewards.new"}),
    ],
)
def test_a_planted_cycle_is_found(tree: Path, file: str, text: str, culprits: set[str]) -> None:
    (tree / "rewards/new.py").write_text("from rewards.labelled import score")
    assert in_cycles(imports(tree)) == set()
    (tree / file).write_text(text)
    assert in_cycles(imports(tree)) == culprits


@pytest.mark.parametrize(
    ("file", "text", "culprits"),
    [
        ("agents/train.py", "import envs.verify", {"agents.train"}),
        ("agents/train.py", "from envs import verify", {"agents.train"}),
        ("agents/train.py", "from envs.verify.shell import run as r", {"agents.train"}),
        ("agents/train.py", "def main():\n    if True:\n        import envs.verify.shell", {"agents.train"}),
        (
            "agents/train.py",
            "from agents.evaluate import main",
            {"agents.train"},
        ),  # by way of a module that may
        ("agents/train.py", "from . import evaluate", {"agents.train"}),
        ("agents/training/loop.py", "from ..evaluate import main", {"agents.train", "agents.training.loop"}),
        (
            "agents/training/__init__.py",
            "from envs.verify import *",
            {"agents.train", "agents.training", "agents.training.loop"},
        ),
        ("rewards/__init__.py", "def score():\n    from envs import verify", {"rewards", "agents.train"}),
    ],
)
def test_a_planted_way_to_what_is_right_is_found(
    tree: Path, file: str, text: str, culprits: set[str]
) -> None:
    (tree / file).write_text(text)
    if file != "agents/train.py":
        assert "rewards" in imports(tree)["agents.train"]
    assert knowing(imports(tree)) - MAY_KNOW == culprits


@pytest.mark.parametrize(
    "text",
    [
        "from envs.domain import load_spec as innocent",
        "import envs.domain as d\nd.load_spec('shell')",
        "import envs.domain as d\ngetattr(d, 'load_spec')('shell')",
        "def f(spec: DomainSpec): ...",
        "def f():\n    from envs.domain import (\n        IntentSpec,\n    )",
    ],
)
def test_a_planted_reader_of_references_is_found(tree: Path, text: str) -> None:
    (tree / "rewards/new.py").write_text(text)
    assert "rewards.new" in using(tree, SPEC_NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "importlib.import_module('envs.verify')",
        "pkgutil.resolve_name('envs.verify:reference')",
        "DOOR = 'envs.verify.reference'",
    ],
)
def test_a_planted_door_is_found(tree: Path, text: str) -> None:
    (tree / "agents/training/loop.py").write_text(text)
    assert risky_doors(tree) == {"agents.training.loop": {"envs.verify"}}


def test_a_planted_door_upwards_or_through_evaluation_is_found(tree: Path) -> None:
    (tree / "rewards/__init__.py").write_text("entry_point = 'agents.training.loop:make'")
    (tree / "agents/train.py").write_text(
        "commands = ['agents.evaluate', 'agents.train', 'agents.nothing', 'envs']"
    )
    assert risky_doors(tree) == {"rewards": {"agents.training.loop"}, "agents.train": {"agents.evaluate"}}


def test_what_is_a_command(tree: Path) -> None:
    assert is_command(tree / "agents/train.py")
    for text in (
        "def main(): ...",
        "if __name__ == '__main__':\n    print()",
        "class A:\n    def main(self): ...\nif __name__ == '__main__': ...",
    ):
        (tree / "agents/new.py").write_text(text)
        assert not is_command(tree / "agents/new.py")
