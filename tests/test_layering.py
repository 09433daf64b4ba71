"""Imports go one way, envs <- rewards <- agents, in no circle, and training cannot reach what is right."""

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
# Folders whose modules may never reach envs.verify, directly or through others.
BLIND = ("envs", "rewards", "agents.cli", "agents.policy", "agents.studies", "agents.training")
# The only modules in them that may: the verification itself, and the reward that is labelled by definition.
SEEING = ("envs.verify", "rewards.labelled")
# Trainers are files in agents/. They hand these two on and import nothing else that knows what is right.
TRAINERS = (
    "constitutional",
    "dpo",
    "grpo",
    "ppo",
    "rejection_sft",
    "reward_model",
    "rloo",
    "self_rewarding",
    "sft",
    "spin",
    "star",
)
HANDED_ON = {"agents.evaluation.heldout.HeldOut", "rewards.labelled.Truth"}
# What the supervised trainers import besides: they look up the references that they learn from.
OPENED = {name: {"envs.verify.truth.find_case"} for name in ("sft", "spin", "star")}
# What holds the reference commands of a domain's file.
SPEC_NAMES = {"load_spec", "IntentSpec", "DomainSpec"}
# Gymnasium resolves these strings when an environment is made. No other string names a module of ours.
DOORS = {"envs": {"agents.policy.gym_factory"}}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module in the packages under `root`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(path: Path, module: str) -> set[str]:
    """Every dotted name that a file imports, at the top or inside functions; relative ones made whole."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, module, path.name == "__init__.py")
            found.update(f"{source}.{alias.name}" for alias in node.names)
    return found


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, node.module] if node.module else parents)


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> our own modules that it may load: those that it names, and the packages above them."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        loaded: set[str] = set()
        for name in imported_names(path, module):
            loaded.update(_with_parents(name))
        graph[module] = (loaded & set(known)) - {module}
    return graph


def named(root: Path) -> dict[str, set[str]]:
    """Module -> our own modules that it names in its imports, without the packages above them."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        graph[module] = set()
        for name in imported_names(path, module):
            target = name if name in known else name.rpartition(".")[0]
            if target in known and target != module:
                graph[module].add(target)
    return graph


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
    wrong = []
    for name, others in graph.items():
        for other in others:
            if PACKAGES.index(other.split(".")[0]) > PACKAGES.index(name.split(".")[0]):
                wrong.append(f"{name} imports {other}")
    return sorted(wrong)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Pairs of modules that reach each other."""
    reach = {name: reached(graph, name) for name in graph}
    return sorted(f"{a} <-> {b}" for a in graph for b in reach[a] if a < b and a in reach[b])


def seeing(graph: dict[str, set[str]]) -> set[str]:
    """Modules outside envs.verify that reach it."""
    found = set()
    for name in graph:
        if not under(name, "envs.verify") and any(
            under(other, "envs.verify") for other in reached(graph, name)
        ):
            found.add(name)
    return found


def seeing_in_the_dark(graph: dict[str, set[str]]) -> set[str]:
    """Modules of blind folders that reach envs.verify although they must not."""
    found = set()
    for name in seeing(graph):
        blind = any(under(name, folder) for folder in BLIND)
        if blind and not any(under(name, module) for module in SEEING):
            found.add(name)
    return found


def opened(root: Path, trainer: str) -> set[str]:
    """What a trainer imports of modules that know what is right, other than the two that it hands on."""
    graph = imports(root)
    right = seeing(graph) | {name for name in graph if under(name, "envs.verify")}
    path = root / "agents" / f"{trainer}.py"
    found = set()
    for name in imported_names(path, f"agents.{trainer}"):
        if right & set(_with_parents(name)) and name not in HANDED_ON:
            found.add(name)
    return found


def using(root: Path, names: Iterable[str]) -> dict[str, set[str]]:
    """Module -> those of `names` that its code mentions: a name, an attribute, an import or a string."""
    found = {}
    for module, path in modules(root).items():
        mentioned: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.alias):
                mentioned |= {node.name, *node.name.split(".")}
            for field in ("id", "attr", "name", "value"):
                if isinstance(value := getattr(node, field, None), str):
                    mentioned.add(value)
        if used := mentioned & set(names):
            found[module] = used
    return found


def doors(root: Path) -> dict[str, set[str]]:
    """Module -> our own modules that it names in strings, as `pkgutil.resolve_name` or `importlib` take them.

    A string that names a command (`python -m agents.evaluate`) does not count: it starts a process.
    """
    known = modules(root)
    commands = {name for name, path in known.items() if path.parent == root / "agents"}
    pattern = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+(:[\w.]+)?")
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and pattern.fullmatch(node.value)
            ):
                continue
            name = node.value.partition(":")[0]
            while name not in known and "." in name:
                name = name.rpartition(".")[0]
            if name in known and name not in commands:
                found.setdefault(module, set()).add(name)
    return found


def is_command(path: Path) -> bool:
    """Whether a file has a `main` and runs it when it is the program."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    guards = [node for node in tree.body if isinstance(node, ast.If)]
    return has_main and any(ast.unparse(node.test) == "__name__ == '__main__'" for node in guards)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(ROOT)


def test_the_graph_is_that_of_this_project(graph: dict[str, set[str]]) -> None:
    assert {"envs", "envs.domain", "envs.verify.truth", "rewards", "agents.training.session"} <= set(graph)
    assert {"envs.domain", "envs.types", "envs"} <= graph["envs.source"]
    assert "envs.verify.truth" in reached(graph, "agents.rejection_sft")  # imported in a function


def test_imports_go_one_way(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == []


def test_no_two_modules_import_each_other() -> None:
    assert circles(named(ROOT)) == []


def test_training_rewards_and_policy_cannot_reach_what_is_right(graph: dict[str, set[str]]) -> None:
    assert seeing_in_the_dark(graph) == set()
    assert "agents.evaluation.heldout" in seeing(graph)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_hands_the_evaluation_on_unopened(trainer: str) -> None:
    assert opened(ROOT, trainer) == OPENED.get(trainer, set())


def test_the_trainers_are_all_there() -> None:
    bases = ("(TrainConfig)", "(PairConfig)", "(OnlineConfig)")
    found = {
        path.stem
        for path in (ROOT / "agents").glob("*.py")
        if any(base in path.read_text() for base in bases)
    }
    assert found == set(TRAINERS)


def test_no_module_is_named_in_a_string() -> None:
    assert doors(ROOT) == DOORS


def test_reference_commands_are_read_in_one_place() -> None:
    users = {module for module in using(ROOT, SPEC_NAMES) if not under(module, "envs.verify")}
    assert users == {"envs.domain", "envs.grammar", "envs.schema", "envs.schema_checks"}


def test_files_in_agents_are_commands_and_folders_are_machinery() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            in_agents = path.parent == ROOT / "agents" and path.name != "__init__.py"
            assert is_command(path) == in_agents, path


@pytest.mark.slow
def test_training_does_not_load_what_is_right() -> None:
    code = (
        "import sys, agents.rejection_sft, rewards, envs.source\n"
        "import agents.training.session, agents.training.update\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('envs.verify')) or 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stderr) == (0, "")


# --- do these tests see what they should?


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project without fault."""
    command = "def main(): ...\nif __name__ == '__main__':\n    main()\n"
    files = {
        "envs/__init__.py": "",
        "envs/domain.py": "def load_spec(): ...",
        "envs/verify/__init__.py": "",
        "envs/verify/truth.py": "from envs.domain import load_spec\nfrom envs.verify import shell",
        "envs/verify/shell.py": "from .. import domain",
        "rewards/__init__.py": "from envs import domain",
        "rewards/labelled.py": "from envs.verify import truth",
        "agents/__init__.py": "",
        "agents/evaluate.py": f"import envs.verify.truth\n{command}",
        "agents/evaluation/__init__.py": "",
        "agents/evaluation/heldout.py": "import envs.verify.truth",
        "agents/ppo.py": (
            "import rewards\nfrom agents.training import loop\ndef main():\n"
            "    from agents.evaluation.heldout import HeldOut\n    from rewards.labelled import Truth\n"
            "if __name__ == '__main__':\n    main()"
        ),
        "agents/training/__init__.py": "",
        "agents/training/loop.py": (
            "import torch, json\nfrom .. import training\nfrom envs.domain import Domain"
        ),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_tree_without_fault_passes(tree: Path) -> None:
    graph = imports(tree)
    assert upward(graph) == []
    assert circles(named(tree)) == []
    assert seeing_in_the_dark(graph) == set()
    assert seeing(graph) == {"agents.evaluate", "agents.evaluation.heldout", "agents.ppo", "rewards.labelled"}
    assert opened(tree, "ppo") == set()
    assert doors(tree) == {}
    assert set(using(tree, SPEC_NAMES)) == {"envs.domain", "envs.verify.truth"}
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
            "class C:\n    def f(self):\n        from agents import ppo",
            "rewards.new imports agents.ppo",
        ),
    ],
)
def test_a_planted_import_against_the_way_is_found(tree: Path, file: str, text: str, wrong: str) -> None:
    (tree / file).write_text(text)
    assert wrong in upward(imports(tree))


@pytest.mark.parametrize(
    ("file", "text", "circle"),
    [
        ("envs/domain.py", "from envs.verify import shell", "envs.domain <-> envs.verify.shell"),
        (
            "envs/verify/shell.py",
            "def f():\n    from envs.verify.truth import verify",
            "envs.verify.shell <-> envs.verify.truth",
        ),
        ("agents/training/loop.py", "import agents.ppo", "agents.ppo <-> agents.training.loop"),
    ],
)
def test_a_planted_circle_is_found(tree: Path, file: str, text: str, circle: str) -> None:
    (tree / file).write_text(text)
    assert circle in circles(named(tree))


@pytest.mark.parametrize(
    ("file", "text", "culprits"),
    [
        ("agents/training/loop.py", "import envs.verify.truth", {"agents.training.loop"}),
        ("agents/training/loop.py", "from ..evaluate import main", {"agents.training.loop"}),
        (
            "agents/training/loop.py",
            "def f():\n    from envs.verify.shell import run as r",
            {"agents.training.loop"},
        ),
        ("agents/training/loop.py", "from agents import ppo", {"agents.training.loop"}),  # through a trainer
        (
            "agents/training/__init__.py",
            "from envs.verify import *",
            {"agents.training", "agents.training.loop"},
        ),
        ("rewards/__init__.py", "def score():\n    from envs import verify", {"rewards"}),
        ("rewards/new.py", "from rewards.labelled import Truth", {"rewards.new"}),
        ("agents/policy/load.py", "from agents.evaluation import heldout", {"agents.policy.load"}),
    ],
)
def test_a_planted_way_to_what_is_right_is_found(
    tree: Path, file: str, text: str, culprits: set[str]
) -> None:
    (tree / file).parent.mkdir(exist_ok=True)
    (tree / file).write_text(text)
    assert seeing_in_the_dark(imports(tree)) == culprits


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("from envs.verify.truth import verify", "envs.verify.truth.verify"),
        ("import envs.verify.truth", "envs.verify.truth"),
        (
            "def f():\n    from agents.evaluation.heldout import held_out",
            "agents.evaluation.heldout.held_out",
        ),
        ("from rewards import labelled", "rewards.labelled"),
    ],
)
def test_a_trainer_that_opens_the_evaluation_is_found(tree: Path, text: str, wrong: str) -> None:
    (tree / "agents/ppo.py").write_text(text)
    assert opened(tree, "ppo") == {wrong}


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
    ("text", "named_module"),
    [
        ("importlib.import_module('envs.verify')", "envs.verify"),
        ("pkgutil.resolve_name('envs.verify.truth:verify')", "envs.verify.truth"),
        ("DOOR = 'envs.verify.truth.verify'", "envs.verify.truth"),
        ("entry_point = 'agents.evaluation.heldout:HeldOut'", "agents.evaluation.heldout"),
    ],
)
def test_a_module_named_in_a_string_is_found(tree: Path, text: str, named_module: str) -> None:
    (tree / "agents/training/loop.py").write_text(text)
    assert doors(tree) == {"agents.training.loop": {named_module}}


def test_a_command_named_in_a_string_is_none(tree: Path) -> None:
    (tree / "agents/evaluate.py").write_text("argv = ['-m', 'agents.ppo', 'agents.nothing', 'envs']")
    assert doors(tree) == {}


def test_what_is_a_command(tree: Path) -> None:
    assert is_command(tree / "agents/ppo.py")
    for text in (
        "def main(): ...",
        "if __name__ == '__main__':\n    print()",
        "class A:\n    def main(self): ...\nif __name__ == '__main__': ...",
    ):
        (tree / "agents/new.py").write_text(text)
        assert not is_command(tree / "agents/new.py")
