"""Pieces of the attacks' scripts: bash, coreutils, util-linux, and perl to make a system call by number."""

from __future__ import annotations

import platform

from envs.verify.sandbox.seccomp import number_of, refused_calls

MACHINE = platform.machine()
TRIED = "echo tried"
# An ELF file for x86_64: a header of 64 bytes, and a program header of 56 that loads all of it at 0x400000
# and makes it executable. The code follows at once.
ELF_HEADER = bytes.fromhex(
    "7f454c46020101000000000000000000 02003e0001000000 7800400000000000 4000000000000000 0000000000000000"
    "00000000 4000 3800 0100 0000 0000 0000"
)
PROGRAM_HEADER = bytes.fromhex("01000000 05000000 0000000000000000 0000400000000000 0000400000000000")
ALIGNMENT = bytes.fromhex("0010000000000000")
HEADERS = 64 + 56  # bytes
EXIT_42 = bytes.fromhex("bf2a000000 b83c000000 0f05")


def number(name: str) -> int:
    """The system call's number on this machine, -1 where there is none."""
    found = number_of(name, MACHINE)
    return -1 if found is None else found


def fails(*steps: str) -> str:
    """Steps none of which may succeed."""
    lines = []
    for place, step in enumerate(steps, start=1):
        lines.append(f"{{ {step}\n}} && echo BREACH: step {place}")
    return "\n".join(lines)


def none_works(*steps: str) -> str:
    """A script of steps none of which may succeed."""
    return f"{fails(*steps)}\n{TRIED}"


def call(name: str, arguments: str = "0,0,0,0,0,0", before: str = "") -> str:
    """A step that makes one system call by number, which must be refused. `before` is perl."""
    said = f'print $r == -1 ? "refused: $!\\n" : "BREACH: {name} gave $r\\n"'
    return f"perl -e '{before} $r = syscall({number(name)}, {arguments}); {said}'"


def calls(*steps: str) -> str:
    """A script of several such calls."""
    return "; ".join([*steps, TRIED])


def all_refused_calls() -> str:
    """A script that makes every system call that the filter refuses, one after another, without arguments."""
    table = ",".join(f"{name}=>{found}" for name, found in refused_calls(MACHINE).items())
    return f"""perl -e '%n = ({table}); for (sort keys %n) {{ $r = syscall($n{{$_}}, 0, 0, 0, 0, 0, 0);
        print "BREACH: $_ $r $!\\n" unless $r == -1 && $! == 1 }}'; {TRIED}"""


def machine_code(digits: str) -> str:
    """A script that runs machine code (x86_64, in hexadecimal), which must be killed before its end."""
    code = bytes.fromhex(digits)
    size = (HEADERS + len(code)).to_bytes(8, "little")
    program = ELF_HEADER + PROGRAM_HEADER + size + size + ALIGNMENT + code + EXIT_42
    written = "".join(f"\\x{byte:02x}" for byte in program)
    run = f"printf '{written}' > code; chmod +x code; ./code"
    return f"{run}; (( $? == 159 )) && echo killed || echo BREACH: it went on; {TRIED}"
