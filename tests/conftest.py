"""Tiny policies with random weights, so that tests need no download, no GPU and no pre-training."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test may need the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Two threads are slower on matrices this small, and the last bits of a result depend on their number. Child
# processes inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
# Some tests ask for the last digits of float32. `CUDA_VISIBLE_DEVICES=0 pytest` runs the others on a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
from hypothesis import settings

# The same few examples each time, on every machine; `make fuzz` draws new ones.
settings.register_profile("same", derandomize=True, max_examples=25, deadline=None, database=None)
settings.register_profile("fuzz", max_examples=int(os.environ.get("FUZZ", "1000")), deadline=None)
settings.load_profile("same")

PROMPTS = [
    "list files",
    "count the lines of notes.txt and of every other text file in the folder docs, then sort them",
    "x",
    "ping web1.test 5 times and then stop",
    "list files",
]
CONTENT_AND_LINE_FEED = ['"\n', " \n", "\nls"]  # tokens as the vocabularies of Llama 3 and Qwen have them
# As in Mistral-7B-Instruct-v0.2.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-sandbox",
        action="store_true",
        help="fail, not skip, the tests that need a sandbox where there is none",
    )


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest) -> None:
    """For a test that executes commands: without a sandbox it is skipped, or fails if one is required."""
    from envs.verify.sandbox.probe import unavailable

    if missing := unavailable():
        if request.config.getoption("--require-sandbox"):
            pytest.fail(f"--require-sandbox: {missing}", pytrace=False)
        pytest.skip(missing)


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has looked for a sandbox yet, and no setting of the system blocks one."""
    from envs.verify.sandbox import errors, probe

    monkeypatch.setattr(probe, "_found", probe._Found())
    monkeypatch.setattr(errors, "SETTINGS", tmp_path_factory.mktemp("settings"))


class Corpus:
    """A few sentences for the tokenizer, repeated, so that it does not change with the domains."""

    examples = (
        (
            "Write one network command, nothing else.\nTask: scan port 443 on web1.test with nmap",
            "nmap -p 443 web1.test",
        ),
        (
            "Write one network command, nothing else.\nTask: ping db.test 5 times and then stop",
            "ping -c 5 db.test",
        ),
        (
            "Say in one line what this shell command does.\nCommand: find . -name '*.txt'",
            "list all text files below this folder",
        ),
        (
            "Say in one line what this shell command does.\nCommand: wc -l notes.txt",
            "count the lines of the file notes.txt",
        ),
        (
            "How similar are these two tasks, from 0 to 10? Answer with the number.\n"
            "First: list files\nSecond: show files",
            "9",
        ),
    )

    def example(self, index: int) -> tuple[str, str]:
        return self.examples[index % len(self.examples)]


def save_model(folder: Path, tokenizer: Any) -> Path:
    """A one-layer Mistral with random weights so large that its probabilities depend on the context."""
    import torch

    from agents.pretraining.model import make_model

    model = make_model(tokenizer, hidden=32, layers=1, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_module(words: Sequence[str], out: Path, error: Path) -> None:
    """What `python -m` does with these words; the output goes to files, a line at a time."""
    for descriptor, path in ((1, out), (2, error)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.setsid()
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = list(words)
    sys.modules.pop(words[0], None)  # it was imported for its imports
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def start_module(words: Sequence[str], out: Path, error: Path) -> Any:
    """Starts `python -m` with these words, without the seconds that Python needs to load the libraries.

    The process is a fork of one that has done nothing but load them, once for all tests. Its sets are in
    another order than ours, and no thread or GPU of ours is in it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agents.rejection_sft", "agents.training.trl_online"])
    process = context.Process(target=run_module, args=(words, out, error))
    process.start()
    return process


def kill_after_the_first_of_three(agent: str, argv: Sequence[str], folder: Path) -> None:
    """Starts a run of three cycles in a process of its own, and kills it once the first cycle is done."""
    printed, error = folder / "printed.txt", folder / "error.txt"
    printed.touch()
    process = start_module([f"agents.{agent}", *argv], printed, error)
    while process.is_alive() and "\ncycle   1/3" not in printed.read_text():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, printed.read_text() + error.read_text()


class Started:
    """A process of `start_module` with what `agents.studies.jobs` uses of a `subprocess.Popen`."""

    def __init__(self, process: Any) -> None:
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a job", timeout or 0.0)


@pytest.fixture
def jobs_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a study are forks of a process that has loaded the libraries."""

    def start(job: Any) -> Started:
        option, *words = job.command
        assert option == "-m"
        job.log.parent.mkdir(parents=True, exist_ok=True)
        return Started(start_module(words, Path(f"{job.log}.out"), Path(f"{job.log}.err")))

    monkeypatch.setattr("agents.studies.jobs._start", start)


def stir(policy: Any, seed: int = 0) -> None:
    """Gives the adapter weights that matter; a fresh one adds nothing."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in policy.snapshot().items()
    }
    policy.restore(weights)


def ids_of(policy: Any, text: str) -> list[int]:
    return list(policy.completion_ids([text])[0])


def thoughts(policy: Any) -> list[list[float]]:
    """Log-probabilities that change when the weights do."""
    return list(policy.logprobs(["list files", "x"], ["ls -a", "ping"]))


def close(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    import numpy as np

    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, atol=tolerance))


def spy(policy: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list to which the model's output of each generated batch will be added."""
    outputs: list[Any] = []
    real = policy.model.generate

    def generate(**options: Any) -> Any:
        outputs.append(real(**options))
        return outputs[-1]

    monkeypatch.setattr(policy.model, "generate", generate)
    return outputs


def save_pocket(folder: Path) -> Path:
    """A tiny model with a tokenizer like the embedded one's, and tokens that hold a line feed."""
    from tokenizers import AddedToken

    from agents.pretraining.model import make_tokenizer

    tokenizer = make_tokenizer(Corpus(), 384)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in CONTENT_AND_LINE_FEED])
    return save_model(folder, tokenizer)


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with a tokenizer like the embedded one's, and tokens that hold a line feed."""
    return save_pocket(tmp_path_factory.mktemp("pocket"))


@pytest.fixture(scope="session")
def brief(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but four of five answers end within twelve tokens: what a trainer needs, at little cost."""
    return save_brief(pocket, tmp_path_factory.mktemp("brief"))


def save_brief(pocket: Path, folder: Path) -> Path:
    """Of the tiny model one whose answers mostly end within twelve tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    ends = [token for token, text in enumerate(texts) if "\n" in text or text == tokenizer.eos_token]
    model = AutoModelForCausalLM.from_pretrained(pocket)
    with torch.no_grad():
        model.get_output_embeddings().weight[ends] *= 2  # larger logits, so one of them is often the largest
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a chat template and without a padding token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket)
    tokenizer.chat_template = None
    tokenizer.pad_token = None
    return save_model(tmp_path_factory.mktemp("plain"), tokenizer)


@pytest.fixture(scope="session")
def foreign_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer like Mistral-7B's: `▁` for spaces, byte fallback, no padding token."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        token: row
        for row, token in enumerate(
            ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
        )
    }
    for character in map(chr, range(ord("!"), ord("~") + 1)):
        vocabulary[character] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in ("▁ls", "▁grep", "▁list", "▁all", "▁files", "INST", "▁["):
        for end in range(1, len(word)):
            merge = (word[:end], word[end])
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault(word[: end + 1], len(vocabulary))
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=MISTRAL_TEMPLATE,
    )
    return save_model(tmp_path_factory.mktemp("foreign_mistral"), tokenizer)


@pytest.fixture(scope="session")
def loaded(pocket: Path) -> Any:
    from agents.policy.load import load_policy

    policy = load_policy(str(pocket))
    stir(policy)
    return policy


@pytest.fixture
def policy(loaded: Any) -> Iterator[Any]:
    """A tiny policy whose adapter differs from its base; what a test does to the adapter is undone."""
    before = loaded.snapshot()
    yield loaded
    loaded.restore(before)
    loaded.batch_sizes = dict.fromkeys(loaded.batch_sizes, 128)
    loaded.model.eval()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`script(policy, [tokens, ...])`: row r of the next batch writes the r-th list (or the last)."""
    import torch

    def write(policy: Any, rows_B: list[list[int]]) -> None:
        head = policy.model.get_output_embeddings()
        step = iter(range(10_000))

        def forward(states: Any) -> Any:
            position, logits = next(step), torch.zeros(*states.shape[:-1], head.weight.shape[0])
            for row in range(len(states)):
                tokens = rows_B[min(row, len(rows_B) - 1)]
                if position < len(tokens):
                    logits[row, :, tokens[position]] = 100.0
            return logits

        monkeypatch.setattr(head, "forward", forward)

    return write


def short_run(folder: Path, domain: str) -> Path:
    """Rejection-sampling SFT on a domain, in a folder of that name."""
    from agents import rejection_sft
    from agents.cli.command import run_command

    budget = "--model embedded --cycles 1 --tasks 4 --eval-tasks 4 --eval-subset 2 --eval-samples 1"
    settings = f"--reward random --temperature 0.9 --seed 3 --output {folder}"
    argv = f"{budget} {settings} --domain {domain} --name {domain}".split()
    assert run_command(rejection_sft.Config, rejection_sft.main, argv, "rejection_sft") == 0
    return folder / domain


@pytest.fixture(scope="session")
def network_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on `network`. A test that changes it takes a copy."""
    return short_run(tmp_path_factory.mktemp("runs"), "network")


@pytest.fixture(scope="session")
def sql_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on `sql`. A test that changes it takes a copy."""
    return short_run(tmp_path_factory.mktemp("runs"), "sql")
