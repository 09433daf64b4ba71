"""Runs one shell command in a sandbox of its own, made by bubblewrap, over a small file tree, and says what came of it.

    python -m envs.verify.sandbox --selftest          # attacks it, and says of each attack whether it was contained
    python -m envs.verify.sandbox --selftest --json

Each command has a fresh set of namespaces (user, mount, process, network, host name, IPC), no capability, a system-call filter, a
16 MiB /box and nothing else that it can write to but 4 MiB in /tmp and 1 MiB in /dev/shm, all in memory. What that holds and what
not is in docs/SANDBOX.md.

Process 1 of the sandbox is a short shell script, `DRIVER`: it lays the tree out, runs the command, kills whatever is left, and
sends the tree back as a tar archive, which is parsed here in memory and never unpacked. As process 1 it cannot be killed from
inside, and it does not start the command before it has heard from us: if we die at any moment, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

MAX_STDOUT = 64 * 1024  # bytes; the command is killed at the first byte beyond
MAX_STDERR = 4 * 1024  # bytes that are kept; the command is killed at MAX_STDOUT
MAX_TREE = 24 << 20  # bytes of the archive that comes back
MAX_COMMAND = 128 * 1024 - 1  # bytes of one argument, by the kernel's own limit
MAX_MEMORY = 1 << 30  # bytes of address space of all its processes together; each has 256 MiB
MAX_FILES = 20_000  # in /box, /tmp and /dev/shm together: a memory file system limits bytes, but hardly the number of files
WATCH = 0.05  # seconds between two looks at the last two
SETUP = 30.0  # seconds that setting up may take on a busy machine
READ_BACK = 4.0  # seconds that sending the tree back may take
NOBODY = 65534  # the user and the group of every command
MTIME = 1_700_000_000  # seconds since 1970 when what is laid out was last changed, where nothing else is said


Ended = Literal["exited", "timeout", "output", "killed"]


@dataclass(frozen=True)
class Entry:
    """One name in a file tree.

    Attributes:
        kind: `other` is a pipe, a device and the like: it can come back, but cannot be handed in.
        mode: permission bits, such as 0o644.
        content: bytes of a file, target of a link.
        links: how many names of the tree are this same file; 1 where it is handed in.
        mtime: seconds since 1970 when it was last changed, for what is handed in. It does not come back, and entries are equal without.
    """

    kind: Literal["file", "directory", "link", "other"]
    mode: int
    content: bytes = b""
    links: int = 1
    mtime: int = field(default=MTIME, compare=False)


Tree = Mapping[str, Entry]  # relative path -> entry; bytes of a path that are not UTF-8 as surrogate escapes


@dataclass(frozen=True)
class Execution:
    """What came of one command.

    Attributes:
        exit_code: 128 + n where signal n ended it; None where it did not end by itself.
        stdout: at most MAX_STDOUT bytes.
        stderr: at most MAX_STDERR bytes.
        tree: /box afterwards, without sockets; None where it could not be read: too big, made unreadable too deep down for READ_BACK or
            for the longest path, or the command did not end by itself.
        ended: `exited`, or what stopped it: the wall clock, too much output, or `killed` for too much memory or too many files, or
            because it killed the shell that waited for it, or wrote to it.
        seconds: spent on it in all.
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    tree: dict[str, Entry] | None
    ended: Ended
    seconds: float


class SandboxError(RuntimeError):
    """The sandbox could not be set up; one line that names the fix. It says nothing about the command.

    Attributes:
        lasting: whether it is of no use to try again.
    """

    def __init__(self, message: str, lasting: bool = False):
        super().__init__(message)
        self.lasting = lasting


# The command is a process group of its own (set -m), so that `kill 0` ends it alone, and process 1 ignores all signals but SIGCHLD.
# A core limit of 1 byte, because one of 0 does not stop cores from being piped to a program where the host has it so.
# The shell that waits for the command belongs to the same user, so the command can write to its pipe. The status is therefore that
# shell's own, which the kernel reports; through the pipe comes only that it is ready to end, and then, as it closes, that it has ended.
# Arguments: descriptor of the tree's archive, seconds after which it gives up by itself, the command. Standard input is the line to us.
DRIVER = r"""
umask 022
tree=$1
tar -xpf - -C /box <&"$tree" || exit 1
exec {tree}<&-
echo ready >&0
read -r go && [[ $go == go ]] || exit 1
exec 3>&1
coproc {
    read -r
    trap - INT QUIT
    set -m
    exec 4>&2 2>/dev/null
    prlimit --nproc=32 --as=268435456 --cpu=2 --fsize=16777216 --nofile=64 --core=1 --memlock=0 --msgqueue=0 --nice=0 --rtprio=0 \
        bash --noprofile --norc -c "$3" </dev/null >&3 2>&4 3>&- 4>&-
    code=$?
    echo done
    exit $code
}
waiting=$COPROC_PID
exec 4<&"${COPROC[0]}" >/dev/null 2>&1 3>&-
trap '' {1..16} {18..31}
echo >&"${COPROC[1]}"
read -r -n 5 -t "$2" said <&4
if [[ $said == done ]]; then
    read -r -n 5 -t 5 <&4
    ended=$?
fi
kill -9 -1
while kill -0 -1; do :; done
wait "$waiting"
code=$?
[[ $ended == 1 ]] || code=
echo "code $code" >&0
[[ -r /box && -w /box && -x /box ]] || chmod u+rwx /box
tar --numeric-owner --format=gnu -cf - -C /box . >&0 && exit
# What the command made unreadable is made readable, after saying which modes it had: first the directories, which cannot be looked into
# before it is their turn, so that each round comes one level deeper, and it ends with the first that nothing was kept from.
for _ in {1..100}; do
    find /box -type d ! -perm -700 -printf '%m %P\0' -exec chmod u+rwx {} + >&0 && break
done
find /box -type f ! -perm -400 -printf '%m %P\0' -exec chmod u+r {} + >&0
printf '\0' >&0
tar --numeric-owner --format=gnu -cf - -C /box . >&0 || echo incomplete >&0
"""

# Name -> number on x86_64 and on aarch64, None where there is none. All are refused with EPERM.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # kernel memory and keys that no other limit counts
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    # large attack surface
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # the kernel's AUDIT_ARCH numbers
NEWEST_CALL = 456  # system calls with higher numbers do not exist for the command
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97


def system_call_filter(machine: str) -> bytes:
    """The filter as the kernel's classic BPF, 8 bytes an instruction; bubblewrap loads it as the last thing before the driver.

    Raises:
        SandboxError: the numbers of this machine's system calls are not known here.
    """
    if machine not in ARCHITECTURES:
        raise SandboxError(
            f"no system-call filter for {machine}: use a machine with {' or '.join(ARCHITECTURES)}",
            lasting=True,
        )
    column = list(ARCHITECTURES).index(machine)
    load, equal, greater, any_bit, give = 0x20, 0x15, 0x25, 0x45, 0x06
    number, architecture, arguments = (
        0,
        4,
        16,
    )  # offsets in what the kernel hands to the filter; arguments have 8 bytes each

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    allow, kill = step(give, 0x7FFF0000), step(give, 0x80000000)

    def refuse(error: int) -> bytes:
        return step(give, 0x00050000 | error)

    def on_argument(call: tuple[int, int], index: int, test: list[bytes]) -> bytes:
        """`test` is run for this call alone, with the low half of an argument loaded, and must end it."""
        body = step(load, arguments + 8 * index) + b"".join(test)
        return step(equal, call[column], 0, len(body) // 8) + body

    program = [step(load, architecture), step(equal, ARCHITECTURES[machine], 1, 0), kill, step(load, number)]
    if machine == "x86_64":
        program += [step(any_bit, 0x40000000, 0, 1), kill]  # the x32 calls, which have numbers of their own
    program += [step(greater, NEWEST_CALL, 0, 1), refuse(ENOSYS)]
    program += [
        step(equal, 435, 0, 1),
        refuse(ENOSYS),
    ]  # clone3 hides its flags in memory; the C library falls back to clone
    for numbers in DENIED.values():
        if (call := numbers[column]) is not None:
            program += [step(equal, call, 0, 1), refuse(EPERM)]
    namespaces = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
    program.append(
        on_argument((56, 220), 0, [step(any_bit, namespaces, 0, 1), refuse(EPERM), allow])
    )  # clone
    typing = [
        step(equal, 0x5412, 1, 0),
        step(equal, 0x541C, 0, 1),
        refuse(EPERM),
        allow,
    ]  # TIOCSTI, TIOCLINUX
    program.append(on_argument((16, 29), 1, typing))  # ioctl
    unix = [step(equal, socket.AF_UNIX, 1, 0), refuse(EAFNOSUPPORT), allow]
    program += [on_argument(call, 0, unix) for call in ((41, 198), (53, 199))]  # socket, socketpair
    return b"".join([*program, allow])


def _arguments(bwrap: str, filter_fd: int, tree_fd: int, wall: float, command: bytes) -> list[bytes]:
    """The command line of the sandbox."""
    # As root, bubblewrap's --uid alone changes nothing for the host's files.
    drop = (
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--"]
        if os.geteuid() == 0
        else []
    )
    options = f"""
        --unshare-user --uid {NOBODY} --gid {NOBODY} --disable-userns --seccomp {filter_fd}
        --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --hostname sandbox
        --new-session --die-with-parent --as-pid-1 --cap-drop ALL --clearenv --setenv PATH /usr/bin:/bin
        --setenv HOME /box --setenv LC_ALL C.UTF-8 --setenv TZ UTC
        --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/sbin /sbin --symlink usr/lib /lib
        --symlink usr/lib64 /lib64 --ro-bind-try /etc/alternatives /etc/alternatives
        --proc /proc --size 4096 --perms 0555 --tmpfs /proc/1 --remount-ro /proc/1
        --dev /dev --size 1048576 --tmpfs /dev/shm --remount-ro /dev
        --perms 1777 --size 4194304 --tmpfs /tmp --perms 0755 --size 16777216 --tmpfs /box --chdir /box --remount-ro /
    """.split()
    driver = ["/bin/bash", "--noprofile", "--norc", "-c", DRIVER, "driver", str(tree_fd), f"{wall + 5:.1f}"]
    return [os.fsencode(word) for word in (*drop, bwrap, *options, "--", *driver)] + [command]


def execute(command: str, tree: Tree = {}, *, wall: float = 5.0) -> Execution:  # noqa: B006 - never written to
    """Runs `bash --noprofile --norc -c command` in a fresh sandbox whose /box, the working directory, holds `tree`.

    May be called from several threads at once, which must stay alive meanwhile: the kernel ends a sandbox with the thread that made
    it. A command that no program could be given (a NUL byte, 128 KiB or more, half a surrogate pair) fails with exit code 126
    without being run.

    Args:
        command: the text as the model wrote it; control characters are handed on.
        tree: files, directories and links. They belong to the user who runs the command.
        wall: seconds that the command may take, beside those for setting up.

    Raises:
        SandboxError: the sandbox could not be set up.
        ValueError: `tree` holds an absolute path, `..`, or an entry of kind `other`.
    """
    started = time.monotonic()
    archive = pack(tree)
    refusal, text = "", b""
    try:
        text = command.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        refusal = "the command is not text"
    if b"\0" in text or len(text) > MAX_COMMAND:
        refusal = "the command holds a NUL byte" if b"\0" in text else "the command is too long"
    if refusal:
        return Execution(
            126, b"", f"bash: {refusal}\n".encode(), dict(tree), "exited", time.monotonic() - started
        )
    bwrap = shutil.which("bwrap")
    if not bwrap:
        raise SandboxError(NOT_INSTALLED, lasting=True)
    with _Run(bwrap, archive, text, wall) as run:
        result = run.result()
    return replace(result, seconds=time.monotonic() - started)


class _Run:
    """One sandbox: its process, its output as far as it was read, and the line to its driver."""

    def __init__(self, bwrap: str, archive: bytes, command: bytes, wall: float):
        self.wall = wall
        self.stdout, self.stderr, self.answer = bytearray(), bytearray(), bytearray()
        self.poll = select.poll()
        self.open: dict[int, bytearray] = {}
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                line, their_line = socket.socketpair()
                self.line = ours.enter_context(line)
                theirs.enter_context(their_line)
                ends = []
                for buffer in (self.stdout, self.stderr):
                    reading, writing = os.pipe()
                    ours.callback(os.close, reading)
                    theirs.callback(os.close, writing)
                    self.open[reading] = buffer
                    ends.append(writing)
                    if (
                        os.geteuid() == 0
                    ):  # for an ordinary user they are the command's own as well, so that it may open /dev/stdout
                        os.fchown(writing, NOBODY, NOBODY)
                filter_fd = _memory_file(theirs, system_call_filter(platform.machine()))
                tree_fd = _memory_file(theirs, archive)
                self.process = subprocess.Popen(
                    _arguments(bwrap, filter_fd, tree_fd, wall, command),
                    stdin=their_line.fileno(),
                    stdout=ends[0],
                    stderr=ends[1],
                    pass_fds=(filter_fd, tree_fd),
                    env={
                        "PATH": os.environ.get("PATH", os.defpath)
                    },  # for setpriv; the command does not see it
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for us: we end it
                )
            except OSError as error:
                raise SandboxError(f"the sandbox cannot be started: {error}") from error
            self.ours = ours.pop_all()
        self.open[self.line.fileno()] = self.answer
        for fd in self.open:
            self.poll.register(fd, select.POLLIN)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # and with it process 1, and with that all others
        self.process.wait()
        self.ours.close()

    def result(self) -> Execution:
        """Lets the command run and waits for its end. Its time is left for the caller to fill in.

        Raises:
            SandboxError: the driver never said that it was ready.
        """
        if self._read(SETUP) != "line" or self.answer != b"ready\n":
            self.process.kill()
            raise diagnosis(bytes(self.stderr))
        init = 0
        with contextlib.suppress(OSError, IndexError):  # it cannot be watched then
            init = _children(self.process.pid)[0]
        self.stderr.clear()
        self.answer.clear()
        with contextlib.suppress(OSError):  # it is gone already: seen below
            self.line.send(b"go\n")
        stopped = self._read(self.wall, init)
        match = re.match(rb"code (\d{0,3})\n", self.answer)
        tree = code = None
        if (
            match
        ):  # all processes of the command are dead, so the rest is the tree and what is left in the pipes
            code = int(match[1]) if match[1] and int(match[1]) <= 255 else None
            stopped = self._read(READ_BACK, to_the_end=True)
            tree = unpack(bytes(self.answer[match.end() :])) if stopped == "end" else None
        self.process.kill()
        ended: Ended = "exited" if code is not None else "killed"
        if max(len(self.stdout), len(self.stderr)) > MAX_STDOUT:
            ended, code, tree = "output", None, None
        elif not match and stopped == "timeout":
            ended = "timeout"
        return Execution(
            code, bytes(self.stdout[:MAX_STDOUT]), bytes(self.stderr[:MAX_STDERR]), tree, ended, 0.0
        )

    def _read(self, seconds: float, init: int = 0, to_the_end: bool = False) -> str:
        """Reads until the driver has sent a line (or all is closed), and says why it stopped: line, end, timeout, output, killed."""
        deadline = time.monotonic() + seconds
        while self.open:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            ready = self.poll.poll(1000 * (min(left, WATCH) if init else left))
            if init and not ready and _too_much(init):
                return "killed"
            for fd, _ in ready:
                buffer = self.open[fd]
                try:
                    data = os.read(fd, 1 << 16)
                except ConnectionResetError:  # it ended without having read all that we sent
                    data = b""
                buffer += data
                if not data:
                    self.poll.unregister(fd)
                    del self.open[fd]
                elif len(buffer) > (MAX_TREE if buffer is self.answer else MAX_STDOUT):
                    return "output"
            if not to_the_end and b"\n" in self.answer:
                return "line"
        return "end"


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    """A file in memory, to be read from its beginning, that the stack closes."""
    fd = os.memfd_create("sandbox")
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _children(pid: int) -> list[int]:
    """The processes that a process with one thread has started and not lost."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _too_much(init: int) -> bool:
    """Whether a sandbox's processes together have too much memory, or its file systems too many files."""
    memory, pending = 0, [init]
    while pending:
        with contextlib.suppress(OSError, IndexError, ValueError):  # it ended while we looked
            pid = pending.pop()
            memory += int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
            for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - the watch must be cheap
                pending += [
                    int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
                ]
    files = 0
    for name in ("box", "tmp", "dev/shm"):
        with contextlib.suppress(OSError):
            found = os.statvfs(
                f"/proc/{init}/root/{name}"
            )  # mount points there: the command cannot put a link in their place
            files += found.f_files - found.f_ffree
    return memory > MAX_MEMORY or files > MAX_FILES


# --- the tree as a tar archive, in memory


def pack(tree: Tree) -> bytes:
    """The tree as an archive.

    Raises:
        ValueError: a path is absolute, empty or holds `..` or a NUL, or an entry is of kind `other`.
    """
    kinds = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
    root = tarfile.TarInfo("./")
    root.type, root.mode, root.mtime = tarfile.DIRTYPE, 0o755, MTIME
    parts = [root.tobuf(tarfile.GNU_FORMAT)]
    for path, entry in tree.items():
        if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise ValueError(f"a path of a tree must stay inside it: {path!r}")
        if entry.kind not in kinds:
            raise ValueError(f"{path!r}: only files, directories and links can be laid out")
        info = tarfile.TarInfo(f"./{path}")
        info.type, info.mode, info.mtime = kinds[entry.kind], entry.mode & 0o7777, entry.mtime
        if entry.kind == "link":
            info.linkname = entry.content.decode("utf-8", "surrogateescape")
        content = entry.content if entry.kind == "file" else b""
        info.size = len(content)
        parts += [
            info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"),
            content,
            bytes(-len(content) % 512),
        ]
    return b"".join([*parts, bytes(1024)])


def unpack(answer: bytes) -> dict[str, Entry] | None:
    """What the driver sent: an archive, or one that could not be read in full, the modes that stood in the way, and a second one.

    Nothing of it is trusted and nothing is written. None where it is broken, or where more follows: the second one is not all either.
    """
    try:
        tree, end = _parse(answer)
        end += -end % 10240  # tar fills up its last record
        if len(answer) > end:
            listing = answer.index(
                b"\0\0", end - 1
            )  # end - 1: the list may be empty, and the archive ends with zeros
            modes = {
                os.fsdecode(path): int(mode, 8)
                for mode, _, path in (line.partition(b" ") for line in answer[end:listing].split(b"\0"))
                if path
            }
            answer = answer[listing + 2 :]
            tree, end = _parse(answer)
            if len(answer) > end + -end % 10240:
                return None
            tree = {path: replace(entry, mode=modes.get(path, entry.mode)) for path, entry in tree.items()}
    except (ValueError, IndexError, KeyError):
        return None
    return tree


def _parse(archive: bytes) -> tuple[dict[str, Entry], int]:
    """GNU tar's own format -> the tree, and the offset after the block of zeros that ends it.

    Raises:
        ValueError, IndexError, KeyError: it is cut off, or not such an archive.
    """
    tree: dict[str, Entry] = {}
    same: dict[str, list[str]] = {}  # first name of a file -> its other names
    kinds: dict[bytes, Literal["file", "directory", "link"]] = {
        b"0": "file",
        b"\0": "file",
        b"5": "directory",
        b"2": "link",
    }
    offset, long_name, long_target = 0, None, None
    while archive[offset] != 0:
        header = archive[offset : offset + 512]
        size, kind = int(header[124:136].rstrip(b" \0"), 8), header[156:157]
        content = archive[offset + 512 : offset + 512 + size]
        if len(header) < 512 or len(content) < size:
            raise ValueError("cut off")
        offset += 512 + size + -size % 512
        if kind == b"L":
            long_name = content.rstrip(b"\0")
            continue
        if kind == b"K":
            long_target = content.rstrip(b"\0")
            continue
        name = os.fsdecode(header[:100].split(b"\0")[0] if long_name is None else long_name)
        target = header[157:257].split(b"\0")[0] if long_target is None else long_target
        long_name = long_target = None
        path, mode = name.removeprefix("./").rstrip("/"), int(header[100:108].rstrip(b" \0"), 8)
        if kind == b"1":
            first = os.fsdecode(target).removeprefix("./")
            same.setdefault(first, []).append(path)
            tree[path] = tree[first]
        elif path:
            tree[path] = Entry(kinds.get(kind, "other"), mode, target if kind == b"2" else content)
    for first, others in same.items():
        for path in (first, *others):
            tree[path] = replace(tree[path], links=1 + len(others))
    return tree, offset + 1024


# --- is there a sandbox here?

NOT_INSTALLED = "bubblewrap is not installed: apt-get install bubblewrap"
SWITCHES = {  # file below /proc/sys -> the value with which ordinary users may make no user namespace, and the one that lets them
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user/max_user_namespaces": ("0", "10000"),
}


PASSING = "temporarily unavailable|annot allocate memory|oo many open files|No space left|nterrupted"  # what may be otherwise next time


def diagnosis(stderr: bytes) -> SandboxError:
    """What bubblewrap said when it failed, with the fix."""
    said = " ".join(stderr.decode(errors="replace").split())[:300]
    if said.startswith("tar: "):
        return SandboxError(f"the file tree cannot be laid out: make it smaller or rename its files ({said})")
    if "nknown option" in said:
        return SandboxError(
            f"bubblewrap is too old (0.8 or newer is needed): install a newer one ({said})", lasting=True
        )
    for name, (blocked, open_) in SWITCHES.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == blocked:
                return SandboxError(
                    f"user namespaces are blocked: sysctl -w {name.replace('/', '.')}={open_}", lasting=True
                )
    if re.search(PASSING, said):
        return SandboxError(f"the sandbox cannot be started: give the machine less to do ({said})")
    if re.search(
        "namespace|uid map|gid map|pivot_root|[Mm]ount|Operation not permitted|Permission denied", said
    ):
        fix = "allow them, or in a container start it with --security-opt seccomp=unconfined"
        return SandboxError(f"user namespaces are blocked: {fix} ({said})", lasting=True)
    return SandboxError(
        f"the sandbox cannot be set up: run bwrap by hand to see why ({said or 'no message'})"
    )


def unavailable() -> str:
    """Empty where commands can be executed here, else one line that names what is missing and the fix. Never raises.

    What is found out holds from then on, but for a failure that may pass, such as too many processes at that moment: that is looked at
    again, after ten times as long as it took to find out.
    """
    with _probing:
        if time.monotonic() >= _found.until:
            started = time.monotonic()
            error = _probe()
            ended = time.monotonic()
            _found.missing = str(error or "")
            _found.until = math.inf if error is None or error.lasting else ended + 10 * (ended - started)
        return _found.missing


class _Found:
    """What the last probe found, and until when it holds."""

    def __init__(self) -> None:
        self.missing, self.until = "", -math.inf


_probing = threading.Lock()
_found = _Found()


def _probe() -> SandboxError | None:
    if sys.platform != "linux":
        return SandboxError(
            "commands are executed on Linux only: use a Linux machine, a virtual one will do", lasting=True
        )
    if os.geteuid() == 0 and shutil.which("bwrap") and not shutil.which("setpriv"):
        return SandboxError("setpriv is not installed: apt-get install util-linux", lasting=True)
    try:
        result = execute("cat probe", {"probe": Entry("file", 0o644, b"works")}, wall=SETUP)
    except SandboxError as error:
        return error
    if result.stdout != b"works" or result.tree is None:
        return diagnosis(result.stderr)
    return None


def main(argv: Sequence[str]) -> int:
    """Attacks the sandbox."""
    from envs.verify import attacks

    return attacks.main(argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
