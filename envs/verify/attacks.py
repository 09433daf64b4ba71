"""Attacks on the sandbox, and whether they were contained, judged from outside.

An attack is a shell script (bash, coreutils, util-linux, and perl for what needs a system call of its own). Before each one things
worth stealing or breaking are planted on the host: a secret in a file that anybody may read and write, in our environment, in an
open descriptor, behind a TCP and an abstract socket, and a process of the sandbox's own user. Afterwards an attack counts as
contained only if

- the script says that it tried, so that one which never ran proves nothing, and it ended in a way that is allowed for it;
- the secret is in nothing that came back, and neither is the word BREACH, which a script prints where a step of it succeeded;
- the planted file, the folder it is in and the process are as they were, and nobody connected to the sockets;
- no process is left that has the attack's number in its command line;
- it took no longer than its wall clock and SLACK, and where it is greedy, the host's free memory and disk hardly moved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from envs.verify.sandbox import (
    ARCHITECTURES,
    DENIED,
    MAX_STDERR,
    MAX_STDOUT,
    MAX_TREE,
    READ_BACK,
    Entry,
    Execution,
    execute,
    unavailable,
)

SLACK = READ_BACK + 2  # seconds beyond the wall clock: a tree may be hard to read, and the machine busy
MAX_LOSS = (
    2 << 30
)  # bytes of memory or disk that a greedy attack may take from the host for as long as it runs
TRIES = 3  # a greedy attack is judged by its best try: the machine may be busy with something else
PATIENCE = 1.0  # seconds until everything of an attack must be gone
NUMBERS: dict[str, tuple[int | None, int | None]] = DENIED | {
    "clone": (56, 220),
    "clone3": (435, 435),
    "mmap": (9, 222),
    "read": (0, 63),
    "sched_setscheduler": (144, 119),
    "statmount": (457, 457),
}

Executor = Callable[..., Execution]


@dataclass(frozen=True)
class Attack:
    """A script and what is allowed to come of it.

    Attributes:
        script: `@NAME@` stands for what the host plants, see `Host.words`.
        ended: how it may end.
        wall: seconds.
        greedy: whether memory and disk of the host are watched.
        check: what else must hold; says what does not, or nothing.
        refused: where it is not 0, no shell may run the script, and this is the exit status that says so.
        again: a second script, run in a sandbox of its own after the first, and judged as well.
    """

    name: str
    script: str
    ended: tuple[str, ...] = ("exited",)
    wall: float = 10.0
    greedy: bool = False
    check: Callable[[Execution], str] = lambda _: ""
    refused: int = 0
    again: str = ""


@dataclass(frozen=True)
class Outcome:
    """Whether one attack was contained, and why not or how it ended."""

    name: str
    contained: bool
    detail: str


# --- scripts


def number(name: str) -> int:
    """The system call's number on this machine."""
    found = NUMBERS[name][list(ARCHITECTURES).index(platform.machine())]
    return -1 if found is None else found


def call(name: str, arguments: str = "0,0,0,0,0,0", before: str = "") -> str:
    """A script that makes one system call by number, which must be refused."""
    return f"""perl -e '{before} $r = syscall({number(name)}, {arguments}); print $r == -1 ? "refused: $!\\n" : "BREACH: {name} gave $r\\n"'"""


def never(*steps: str) -> str:
    """A script of steps none of which may succeed."""
    return "\n".join(
        f"{{ {step}\n}} && echo BREACH: step {place}" for place, step in enumerate(steps, start=1)
    )


def native(code: bytes) -> str:
    """A script that runs machine code (x86_64), as an executable of its own; exit status 42 means that the code came to its end."""
    header = bytes.fromhex(
        "7f454c46020101000000000000000000 02003e0001000000 7800400000000000 4000000000000000 0000000000000000"
    )
    header += bytes.fromhex("00000000 4000 3800 0100 0000 0000 0000")
    size = (120 + len(code)).to_bytes(8, "little")
    header += (
        bytes.fromhex("01000000 05000000 0000000000000000 0000400000000000 0000400000000000") + size + size
    )
    header += bytes.fromhex("0010000000000000")
    written = "".join(
        f"\\x{byte:02x}" for byte in header + code + bytes.fromhex("bf2a000000 b83c000000 0f05")
    )  # exit(42)
    return f"printf '{written}' > code; chmod +x code; ./code; (( $? == 159 )) && echo killed || echo BREACH: it went on"


def all_refused() -> str:
    """Every system call that the filter denies, one after another, with no arguments."""
    names = [name for name in DENIED if number(name) >= 0]
    table = ",".join(f"{name}=>{number(name)}" for name in names)
    return f"""perl -e '%n = ({table}); for (sort keys %n) {{ $r = syscall($n{{$_}}, 0, 0, 0, 0, 0, 0);
        print "BREACH: $_ $r $!\\n" unless $r == -1 && $! == 1 }}'"""


# --- what must be true of what came back


def _tree(test: Callable[[dict[str, Entry]], bool], what: str) -> Callable[[Execution], str]:
    def check(execution: Execution) -> str:
        with contextlib.suppress(KeyError):  # a name that is missing
            if execution.tree is not None and test(execution.tree):
                return ""
        return what

    return check


def _small_or_no_tree(execution: Execution) -> str:
    return (
        ""
        if sum(len(entry.content) for entry in (execution.tree or {}).values()) <= MAX_TREE
        else "an enormous tree"
    )


STOPPED = ("timeout", "killed", "output")
ANY = ("exited", *STOPPED)


def _status(*allowed: int) -> Callable[[Execution], str]:
    """The exit status must be one of these, or none."""
    return lambda execution: (
        "" if execution.exit_code in (None, *allowed) else f"exit status {execution.exit_code}"
    )


def _modes_or_no_tree(execution: Execution) -> str:
    return (
        ""
        if all(entry.mode == 0 for entry in (execution.tree or {}).values())
        else "the modes did not come back"
    )


def attacks() -> list[Attack]:
    """The table."""
    found = [
        # --- processes that multiply, stay, or turn on others
        Attack("fork bomb", "echo tried; :(){ :|:& };:; sleep 300.@TAG@", ANY, 2, greedy=True),
        Attack(
            "fork bomb of session leaders",
            "echo tried; perl -e 'use POSIX; while (1) { fork; setsid() }'",
            ANY,
            2,
            greedy=True,
        ),
        Attack(
            "fork bomb that ignores signals",
            "echo tried; trap '' {1..64}; f() { f & f & wait; }; f; sleep 300.@TAG@",
            ANY,
            2,
        ),
        Attack(
            "a hundred daemons", "echo tried; for i in {1..100}; do setsid sleep 300.@TAG@ & done", ANY, 2
        ),
        Attack("daemon that holds the pipe", "sleep 300.@TAG@ & echo tried"),
        Attack("daemon that writes on", "(while echo x; do sleep 0.01; done) & echo tried"),
        Attack(
            "double-forked daemon",
            "(setsid bash -c 'setsid sleep 300.@TAG@ & exec sleep 300.@TAG@' </dev/null >/dev/null 2>&1 &) ; echo tried",
        ),
        Attack(
            "daemon that ignores signals",
            """perl -e '$SIG{$_} = "IGNORE" for keys %SIG; exit if fork; $0 = "300.@TAG@"; sleep 1 while 1'; echo tried""",
        ),
        Attack("sleep without end", "echo tried; sleep 300.@TAG@", ("timeout",), 1),
        Attack("loop without end", "echo tried; while :; do :; done", ANY),
        Attack(
            "loops without end that ignore signals",
            "echo tried; trap '' {1..64}; for i in {1..8}; do while :; do :; done & done; wait",
            ANY,
            3,
        ),
        Attack("shell replaced and detached", "echo tried; exec setsid -f sleep 300.@TAG@"),
        Attack("kill all processes", "echo tried; kill -9 -1; sleep 300.@TAG@", ANY, 2),
        Attack("kill process 1", "for s in {1..64}; do kill -$s 1; done 2>/dev/null; echo tried"),
        Attack("kill the waiting shell", "echo tried; kill -9 $PPID; sleep 300.@TAG@", ANY, 2),
        Attack(
            "kill by number",
            "echo tried; for ((p = 2; p < 40000; p++)); do (( p == $$ )) || kill -9 $p; done 2>/dev/null",
            ANY,
        ),
        Attack("stop all processes", "echo tried; kill -STOP -1; sleep 300.@TAG@", ANY, 1),
        Attack("signal the planted process", never("kill -9 @DECOY@") + "\necho tried"),
        Attack(
            "more priority",
            never(
                "renice -n -5 $$",
                "nice -n -5 true 2>&1 | grep -qv cannot",
                "chrt -f 1 true",
                "chrt -r 1 true",
            )
            + "\necho tried",
        ),
        Attack("realtime by system call", call("sched_setscheduler", "0, 1, pack(q(i), 1)") + "; echo tried"),
        Attack(
            "higher limits",
            never(
                "ulimit -Hu 4096",
                "ulimit -Hv unlimited",
                "ulimit -Ht 600",
                "ulimit -Hf unlimited",
                "prlimit --pid $$ --nproc=4096:4096",
            )
            + "\necho tried",
        ),
        # --- memory
        Attack(
            "memory of one process",
            """perl -e '$x = "x" x (1 << 30); print "BREACH\\n"'; echo tried""",
            greedy=True,
        ),
        Attack(
            "memory of many processes",
            """echo tried; for i in {1..28}; do perl -e 'push @x, "x" x (1 << 20) while 1' & done; sleep 300.@TAG@""",
            ANY,
            4,
            greedy=True,
        ),
        Attack(
            "shared memory of many processes",
            f"""echo tried; for i in {{1..28}}; do perl -e 'open Z, "/dev/zero"; $a = syscall({number("mmap")}, 0, 200 << 20, 3, 33, -1, 0);
            syscall({number("read")}, fileno Z, $a, 200 << 20); sleep 300' & done; sleep 300.@TAG@""",
            ANY,
            3,
            greedy=True,
        ),
        Attack("stack", "echo tried; f() { f; }; f", ANY, greedy=True),
        Attack(
            "System V shared memory",
            call("shmget", "0, 4096, 0x380") + ";" + call("msgget", "0, 0x380") + "; echo tried",
        ),
        Attack("anonymous memory file", call("memfd_create", "q(x), 0") + "; echo tried"),
        Attack(
            "socket buffers",
            """echo tried; perl -e 'use Socket; for (1..28) { socketpair($a[$_], $b[$_], AF_UNIX, SOCK_DGRAM, 0); $a[$_]->blocking(0);
            1 while syswrite($a[$_], "x" x 60000) }'""",
            ANY,
            greedy=True,
        ),
        # --- disk
        Attack(
            "fill /box",
            "echo tried; for i in {1..99}; do head -c 100M /dev/zero > /box/$i; done 2>/dev/null",
            ANY,
            greedy=True,
            check=_small_or_no_tree,
        ),
        Attack(
            "fill /tmp",
            "echo tried; for i in {1..99}; do head -c 100M /dev/zero > /tmp/$i; done 2>/dev/null",
            ANY,
            greedy=True,
        ),
        Attack(
            "fill /dev/shm",
            "echo tried; for i in {1..99}; do head -c 100M /dev/zero > /dev/shm/$i; done 2>/dev/null",
            ANY,
            greedy=True,
        ),
        Attack(
            "files without number",
            """echo tried; for d in /box /tmp /dev/shm; do perl -e 'open F, ">", "$ARGV[0]/$$.".$i++ while 1' $d & done; wait""",
            ANY,
            greedy=True,
        ),
        Attack(
            "links without number",
            "echo tried; touch a; perl -e 'link q(a), qq(l$i) while ++$i < 3e6'",
            ANY,
            greedy=True,
            check=_small_or_no_tree,
        ),
        Attack(
            "sparse file",
            never("truncate -s 1T big", "truncate -s 32M big", "fallocate -l 32M big 2>/dev/null")
            + "\necho tried",
        ),
        Attack(
            "sparse files",
            "echo tried; for i in {1..2000}; do truncate -s 16M $i; done",
            ANY,
            greedy=True,
            check=_small_or_no_tree,
        ),
        Attack(
            "deep directories",
            "echo tried; for i in {1..3000}; do mkdir d && cd -P d || break; done 2>/dev/null",
            ANY,
            check=_small_or_no_tree,
        ),
        Attack(
            "deep directories past the longest path",
            """echo tried; perl -e 'for (1..30000) { mkdir q(d) x 200; chdir q(d) x 200 or last }'""",
            ANY,
        ),
        Attack(
            "enormous names",
            "echo tried; n=$(printf '%0250d' 0); for i in {1..5000}; do : > $n$i; done",
            ANY,
            check=_small_or_no_tree,
        ),
        # --- output
        Attack("endless output", "echo tried; yes", ("output",)),
        Attack("endless errors", "echo tried; yes >&2", ("output",)),
        Attack("endless output without a line", "echo tried; cat /dev/zero", ("output",)),
        Attack("slow endless output", "echo tried; while echo x; do sleep 0.1; done", ("timeout",), 1),
        Attack("closed output", "echo tried; exec >&- 2>&-; sleep 300.@TAG@", ("timeout",), 1),
        Attack("waiting for input", "cat; read -r x; echo tried"),
        # --- the tree that comes back
        Attack(
            "links to the host's files",
            "ln -s @FILE@ l; ln -s /etc/shadow s; ln -s / r; ln -s ../../../../@FILE@ u; echo tried",
            check=_tree(
                lambda tree: {tree[name].kind for name in "lsru"} == {"link"},
                "the links did not come back as links",
            ),
        ),
        Attack(
            "pipes and sockets in the tree",
            "mkfifo p; perl -e 'use Socket; socket S, AF_UNIX, SOCK_STREAM, 0; bind S, sockaddr_un q(s)'; echo tried",
            check=_tree(lambda tree: tree["p"].kind == "other", "the pipe did not come back as one"),
        ),
        Attack(
            "directories without permissions",
            "mkdir -p a/b; echo x > a/b/f; chmod 000 a/b/f a/b a .; echo tried",
            check=_tree(
                lambda tree: tree["a/b/f"] == Entry("file", 0, b"x\n") and tree["a/b"].mode == 0,
                "the tree did not come back",
            ),
        ),
        Attack(
            "names that are options",
            "touch -- '--checkpoint=1' '--checkpoint-action=exec=touch pwned' '-rf' $'a\\nb' $'\\xff'; echo tried",
            check=_tree(
                lambda tree: len(tree) == 5 and "--checkpoint=1" in tree, "the tree did not come back"
            ),
        ),
        Attack(
            "forged archive",
            "mkdir x; tar --transform 's,^,../../../@FILE@,' -Pcf f x; cat f f > $'0 ..\\n777 f'; chmod 000 *; echo tried",
            check=_tree(lambda tree: len(tree) == 3 and tree["f"].mode == 0, "it was believed"),
        ),
        Attack(
            "forged answer",
            never(
                "echo 'code 0' > /proc/1/fd/0", "exec 9<>/proc/1/mem", "ls /proc/1/fd", "cat /proc/1/environ"
            )
            + "\necho tried",
        ),
        Attack(
            "the working directory replaced",
            never("mv /box /tmp/x", "rmdir /box", "ln -sfn / /box/../box2") + "\necho tried",
        ),
        Attack(
            "thousands of unreadable files",
            "echo tried; for i in {1..17000}; do :>$i; done; chmod 000 -- *",
            ANY,
            3,
            check=_modes_or_no_tree,
        ),
        Attack(
            "thousands of unreadable directories",
            "echo tried; perl -e 'for(1..17000){mkdir $_} chmod 0, 1..17000'",
            ANY,
            3,
            check=_modes_or_no_tree,
        ),
        Attack(
            "unreadable directories in each other, beside thousands",
            """echo tried; perl -e 'mkdir $_ for 1..16000; for (1..99) { mkdir q(d); chdir q(d) }
            for (1..99) { chdir q(..); chmod 0, q(d) }'""",
            ANY,
            3,
        ),
        Attack(
            "unreadable directories past the longest path",
            """echo tried; perl -e 'for (1..99) { mkdir q(d) x 200; chdir q(d) x 200 }
            for (1..99) { chdir q(..); chmod 0, q(d) x 200 }'""",
            ANY,
            3,
            check=_modes_or_no_tree,
        ),
        # --- the exit status
        Attack(
            "forged status of thousands of digits",
            "echo tried; printf '1%.0s' {1..5000} > /proc/$PPID/fd/1; echo > /proc/$PPID/fd/1; sleep 1",
            ("exited", "killed"),
            check=_status(0),
        ),
        Attack(
            "forged status beyond all numbers",
            "echo tried; echo 99999999999999999999999 > /proc/$PPID/fd/1; sleep 1",
            ("exited", "killed"),
            check=_status(0),
        ),
        Attack(
            "forged status of success",
            "echo tried; for said in 0 'code 0' done; do echo $said > /proc/$PPID/fd/1; done; sleep 1; exit 7",
            ("exited", "killed"),
            check=_status(7),
        ),
        Attack(
            "forged end, and the waiting shell killed",
            "echo tried; echo done > /proc/$PPID/fd/1; kill -9 $PPID; sleep 300.@TAG@",
            ANY,
            3,
            check=_status(137),
        ),
        Attack(
            "forged status without end",
            "echo tried; yes | tr -d '\\n' > /proc/$PPID/fd/1; sleep 300.@TAG@",
            ANY,
            3,
            check=_status(),
        ),
        # --- the host's files
        Attack(
            "read the planted file",
            never("cat @FILE@", "cat /proc/self/root@FILE@", "ls @FOLDER@") + "\necho tried",
        ),
        Attack(
            "write the planted file",
            never("echo x > @FILE@", "touch @FOLDER@/new", "rm -f @FILE@ && [[ ! -e @FILE@ && -e @FOLDER@ ]]")
            + "\necho tried",
        ),
        Attack(
            "search for the planted file",
            "find / -path /proc -prune -o -name @NAME@ -print 2>/dev/null | grep . && echo BREACH; echo tried",
            wall=60,
        ),
        Attack(
            "escape by ..",
            never("cat ../../../../../../..@FILE@", "cd /proc/self/cwd/../../.. && cat .@FILE@")
            + "\necho tried",
        ),
        Attack(
            "escape through /proc",
            "for p in /proc/[0-9]*; do "
            + never("cat $p/root@FILE@", "cat $p/cwd/../..@FILE@")
            + "; done; echo tried",
        ),
        Attack(
            "home, users and passwords",
            never("cat /etc/shadow", "cat /etc/passwd", "ls /root", "ls /home", "ls @HOME@") + "\necho tried",
        ),
        Attack(
            "write where programs are",
            never(
                *(
                    f"touch {folder}/x"
                    for folder in ("", "/usr", "/usr/bin", "/usr/lib", "/bin", "/etc", "/dev", "/proc")
                )
            )
            + "\necho tried",
        ),
        Attack(
            "block devices and memory",
            never("cat /dev/[shv]d? | head -c 1 | grep -q .", "head -c 1 /dev/mem", "head -c 1 /proc/kcore")
            + "\necho tried",
        ),
        Attack(
            "kernel messages",
            never("dmesg", "head -c 1 /dev/kmsg", "head -c 1 /proc/kmsg")
            + f"\n{call('syslog', '10, 0, 0')}; echo tried",
        ),
        Attack(
            "make devices", never("mknod b b 8 0", "mknod c c 1 1", "mknod /tmp/c c 1 5") + "\necho tried"
        ),
        Attack("file handles", call("open_by_handle_at", "-100, pack(q(IiQ), 8, 1, 2), 0") + "; echo tried"),
        Attack("secrets in the environment", "env; set; export -p; cat /proc/[0-9]*/environ; echo tried"),
        Attack(
            "open descriptors",
            "for ((f = 3; f < 256; f++)); do cat <&$f; cat /proc/self/fd/$f; done 2>/dev/null; echo tried",
        ),
        Attack(
            "command lines of others",
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c -- @OTHER@ | grep -qx 0 || echo BREACH; echo tried",
        ),
        # --- the kernel's switches
        Attack(
            "switches in /proc",
            never(
                "echo b > /proc/sysrq-trigger",
                "echo '|/bin/true' > /proc/sys/kernel/core_pattern",
                "echo 1 > /proc/sys/vm/drop_caches",
                "echo x > /proc/sys/kernel/hostname",
                "echo /bin/true > /proc/sys/kernel/modprobe",
                "echo 1 > /proc/sys/net/ipv4/ip_forward",
            )
            + "\necho tried",
        ),
        Attack(
            "spared when memory is short",
            never("echo -1000 > /proc/self/oom_score_adj", "echo 0 > /proc/self/loginuid") + "\necho tried",
        ),
        Attack(
            "cores piped to a program",
            "grep -q 'core file size *1 *1 ' /proc/self/limits || echo BREACH; bash -c 'kill -SEGV $$'; ls; echo tried",
        ),
        Attack(
            "control groups",
            never(
                "ls /sys/fs/cgroup",
                "mount -t cgroup2 none /tmp",
                "mount -t cgroup none /tmp",
                "echo 1 > /sys/x",
            )
            + "\necho tried",
        ),
        Attack(
            "host name",
            never("hostname x", "echo x > /proc/sys/kernel/hostname")
            + f"\n{call('sethostname', 'q(x), 1')}; echo tried",
        ),
        Attack("clock", never("date -s 2000-01-01") + f"\n{call('settimeofday', '0, 0')}; echo tried"),
        Attack(
            "swap, modules, kexec, reboot",
            "; ".join(map(call, ("swapon", "init_module", "kexec_load", "reboot"))) + "; echo tried",
        ),
        # --- more rights
        Attack(
            "become root",
            """perl -e '$< = $> = 0; print "BREACH\\n" if !$< || !$>'; id -u | grep -qx 0 && echo BREACH; echo tried""",
        ),
        Attack(
            "programs that run as root",
            never("su -c true", "sudo -n true", "newgrp root -c true")
            + "\ngrep -q 'NoNewPrivs:.1' /proc/self/status && echo tried",
        ),
        Attack(
            "capabilities",
            "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | grep -v 0000000000000000 && echo BREACH; echo tried",
        ),
        Attack(
            "change owners",
            never("touch f && chown 0 f", "touch g && chgrp 0 g", "chown 0 /usr") + "\necho tried",
        ),
        Attack(
            "setuid files",
            "cp /usr/bin/id x; chmod 6755 x; ./x -u | grep -qx 0 && echo BREACH; ./x -G | grep -w 0 && echo BREACH; echo tried",
        ),
        Attack(
            "user namespaces",
            never("unshare -Ur true", "unshare -U true") + f"\n{call('unshare', '0x10000000')}; echo tried",
        ),
        Attack(
            "namespaces by clone",
            f"{call('clone', '0x10000011, 0, 0, 0, 0')}; {call('clone3', 'q(x) x 88, 88')}; echo tried",
        ),
        Attack(
            "namespaces of others",
            never("nsenter -t 1 -m true", "nsenter -t $PPID -U true")
            + f"\n{call('setns', '0, 0')}; echo tried",
        ),
        Attack(
            "mount",
            never(
                "mount -t tmpfs x /tmp",
                "mount --bind / /tmp",
                "mount -o remount,rw /usr",
                "umount -l /box",
                "umount /proc/1",
            )
            + "\necho tried",
        ),
        Attack(
            "mount by the new calls",
            f"{call('fsopen', 'q(tmpfs), 0')}; {call('open_tree', '-100, q(/), 1')}; {call('statmount')}; echo tried",
        ),
        Attack(
            "change the root",
            never("chroot / true")
            + f"\n{call('chroot', 'q(/)')}; {call('pivot_root', 'q(/), q(/)')}; echo tried",
        ),
        Attack(
            "trace processes",
            f"{call('ptrace', '0, 0, 0, 0')}; {call('ptrace', '16, getppid, 0, 0')}; echo tried",
        ),
        Attack(
            "memory of other processes",
            f"{call('process_vm_readv', 'getppid, 0, 0, 0, 0, 0')}; {call('kcmp', '$$, getppid, 0, 0, 0')}; echo tried",
        ),
        Attack(
            "kernel keyring",
            f"{call('add_key', 'q(user), q(x), q(y), 1, -2')}; {call('keyctl', '0, -3, 1')}; echo tried",
        ),
        Attack("io_uring", call("io_uring_setup", "4, $x", "$x = qq(\\0) x 120;") + "; echo tried"),
        Attack(
            "programs in the kernel",
            call("bpf", "0, $x, 72", "$x = pack(q(L4), 2, 4, 4, 1) . qq(\\0) x 56;") + "; echo tried",
        ),
        Attack(
            "performance counters",
            call("perf_event_open", "$x, 0, -1, -1, 0", "$x = pack(q(LLQ), 1, 112, 0) . qq(\\0) x 96;")
            + "; echo tried",
        ),
        Attack("page faults in user space", call("userfaultfd", "1") + "; echo tried"),
        Attack("another personality", call("personality", "0x0040000") + "; echo tried"),
        Attack("every denied system call", all_refused() + "; echo tried"),
        Attack(
            "keys typed into a terminal",
            """perl -e 'open T, "+<", "/dev/ptmx"; for ($f = 0; $f < 5; $f++) { open F, "+<&=$f" or next; $c = "x";
            print "BREACH\\n" if ioctl F, 0x5412, $c }
            open F, "+<", "/dev/tty" and print "BREACH: tty\\n"'; echo tried""",
        ),
        # --- the network
        Attack("the host's loopback", never("exec 3<>/dev/tcp/127.0.0.1/@PORT@ && cat <&3") + "\necho tried"),
        Attack(
            "other machines",
            never("exec 3<>/dev/tcp/192.0.2.1/80", "exec 3<>/dev/udp/192.0.2.1/53") + "\necho tried",
            wall=3,
        ),
        Attack(
            "the host's abstract socket",
            """perl -e 'use Socket; socket S, AF_UNIX, SOCK_STREAM, 0;
            print "BREACH\\n" if connect S, pack("Sa*", 1, "\\0@ABSTRACT@")'; echo tried""",
        ),
        Attack("the host's sockets in files", never("ls /run/*", "ls /var/run/*") + "\necho tried"),
        Attack(
            "unusual sockets",
            """perl -e 'for $d (2, 10, 15, 16, 17, 31, 38, 40, 44) { for $t (1, 2, 3, 5) {
            print "BREACH: $d $t\\n" if socket S, $d, $t, 0 } }'; echo tried""",
        ),
        # --- the command itself
        Attack(
            "control characters",
            "printf '\\033]0;x\\007\\033[2J\\r\\b'; : $'\\x01\\x7f' \x01\x02\x07\x08\x1b[2J\x7f\x80; echo tried",
        ),
        Attack("a NUL byte", "echo tried\0; sleep 300.@TAG@", refused=126),
        Attack("a command of 200 KiB", "echo tried; : " + "x" * 200_000, refused=126),
        Attack("half a character", "echo tried; : \ud800", refused=126),
        Attack(
            "a command that ends the script around it",
            """echo tried; ' " ) } ; kill -9 1 # $( ` \n)\n}""",
            refused=2,
        ),
        Attack(
            "something left for the next command",
            "for d in /box /tmp /dev/shm; do echo 'echo BREACH' > $d/.bashrc; cp $d/.bashrc $d/left; done; echo tried",
            again="ls -A /box /tmp /dev/shm | grep -E 'left|bashrc' && echo BREACH; set -o history; history; echo tried",
        ),
        Attack(
            "a library in front of all others",
            "cp /usr/lib/*/libc.so.6 x.so; echo 'echo BREACH' > e; LD_PRELOAD=/box/x.so BASH_ENV=/box/e ENV=/box/e su -c true; echo tried",
            check=_tree(lambda tree: "x.so" in tree, "the tree did not come back"),
        ),
    ]
    if platform.machine() == "x86_64":
        found += [
            Attack(
                "32-bit system calls", native(bytes.fromhex("b814000000 cd80")) + "; echo tried"
            ),  # getpid by int 0x80
            Attack("x32 system calls", native(bytes.fromhex("b827000040 0f05")) + "; echo tried"),
        ]
    return found


# --- the host, before and after


class Host:
    """Plants what an attack could steal or break, and says afterwards what it did."""

    def __init__(self) -> None:
        self.secret = f"secret-{secrets.token_hex(16)}"
        self.connections = 0
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Host:
        stack = self.stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planted-")))
        self.file = self.folder / f"planted-{secrets.token_hex(8)}"
        self.file.write_text(self.secret)
        self.folder.chmod(0o777)  # only that it cannot be seen protects it
        self.file.chmod(0o666)
        self.before = self._files()
        os.environ["PLANTED"] = self.secret
        stack.callback(os.environ.pop, "PLANTED")
        fd = os.open(self.file, os.O_RDONLY)
        os.set_inheritable(fd, True)
        stack.callback(os.close, fd)
        self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.abstract = f"planted-{secrets.token_hex(8)}"
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0{self.abstract}")
        unix.listen()
        for server in (self.tcp, unix):
            threading.Thread(target=self._serve, args=(server,), daemon=True).start()
        user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        self.other = f"600.{secrets.randbelow(10**9):09}"
        self.decoy = subprocess.Popen(["sleep", self.other], **user, cwd="/")  # type: ignore[call-overload]
        stack.callback(self.decoy.wait)
        stack.callback(self.decoy.kill)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def _serve(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, _ = server.accept()
                self.connections += 1
                with connection:
                    connection.sendall(self.secret.encode())

    def _files(self) -> dict[str, tuple[bytes, int, int]]:
        return {
            path.name: (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
            for path in sorted(self.folder.iterdir())
        }

    def words(self, tag: str) -> dict[str, str]:
        """What the placeholders of a script stand for."""
        return {
            "@TAG@": tag,
            "@FILE@": str(self.file),
            "@FOLDER@": str(self.folder),
            "@NAME@": self.file.name,
            "@HOME@": str(Path.home()),
            "@PORT@": str(self.tcp.getsockname()[1]),
            "@ABSTRACT@": self.abstract,
            "@DECOY@": str(self.decoy.pid),
            "@OTHER@": self.other.replace(".", "[.]"),
        }

    def harm(self) -> str:
        """What is not as it was, or nothing."""
        if self._files() != self.before:
            return "the planted file or its folder was changed"
        if self.connections:
            return "somebody connected to a planted socket"
        if (
            self.decoy.poll() is not None
            or Path(f"/proc/{self.decoy.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        ):
            return "the planted process was ended or stopped"
        return ""


def alive(tag: str) -> list[int]:
    """The processes of the host, but for this one, that have `tag` in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has just ended
                if tag.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


def outlived(tag: str) -> list[int]:
    """As `alive`, but with the time to go that everything has."""
    deadline = time.monotonic() + PATIENCE
    while (found := alive(tag)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def free() -> tuple[int, int]:
    """Bytes of memory and of disk that the host has to give."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024, shutil.disk_usage(tempfile.gettempdir()).free


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """What the block takes of memory and of disk at most, in bytes, known after it."""
    before, loss, done = free(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for place, (first, now) in enumerate(zip(before, free(), strict=True)):
                loss[place] = max(loss[place], first - now)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield loss
    finally:
        done.set()
        thread.join()


# --- judging


def breach(attack: Attack, execution: Execution, host: Host, seconds: float) -> str:
    """Why an attack was not contained, as far as what came back and the planted things tell; empty where it was."""
    back = [execution.stdout, execution.stderr]
    for path, entry in (execution.tree or {}).items():
        back += [os.fsencode(path), entry.content]
    seen = b"\n".join(back)
    if host.secret.encode() in seen:
        return "the secret came back"
    if b"BREACH" in execution.stdout or b"BREACH" in execution.stderr:
        return next(repr(line) for line in seen.splitlines() if b"BREACH" in line)
    if harm := host.harm():
        return harm
    if execution.ended not in attack.ended:
        return f"it ended otherwise than it should: {execution.ended}"
    if seconds > attack.wall + SLACK:
        return f"it took {seconds:.1f} s"
    if len(execution.stdout) > MAX_STDOUT or len(execution.stderr) > MAX_STDERR:
        return "more output than is allowed"
    if wrong := attack.check(execution):
        return wrong
    if attack.refused:
        return (
            ""
            if execution.exit_code == attack.refused
            else f"exit status {execution.exit_code}, not {attack.refused}"
        )
    if b"tried" not in execution.stdout:
        return f"it was not tried: {execution.stderr[:200]!r}"
    return ""


def run(attack: Attack, host: Host, executor: Executor = execute) -> Outcome:
    """Runs one attack and judges it."""
    detail = ""
    for _ in range(TRIES if attack.greedy else 1):
        with watched() as loss:
            for script in filter(None, (attack.script, attack.again)):
                tag = f"{secrets.randbelow(10**12):012}"
                for word, meaning in host.words(tag).items():
                    script = script.replace(word, meaning)
                started = time.monotonic()
                try:
                    execution = executor(f"{script}\n# {tag}", wall=attack.wall)
                except Exception as error:  # whatever a command does is a result
                    return Outcome(
                        attack.name, False, f"it raised {type(error).__name__}: {str(error)[:200]}"
                    )
                seconds = time.monotonic() - started
                detail = breach(attack, execution, host, seconds)
                if not detail and (left := outlived(tag)):
                    detail = f"{len(left)} processes outlived it"
                if detail:
                    return Outcome(attack.name, False, detail)
        if not attack.greedy or max(loss) <= MAX_LOSS:
            took = f", {loss[0] >> 20} MiB at most" if attack.greedy else ""
            return Outcome(attack.name, True, f"{execution.ended} after {seconds:.2f} s{took}")
        detail = f"it took {loss[0] >> 20} MiB of memory, {loss[1] >> 20} MiB of disk from the host"
    return Outcome(attack.name, False, detail)


def shared() -> list[str]:
    """The kinds of namespace that a sandboxed command has in common with us; without all of them no attack should be started."""
    kinds = ("mnt", "pid", "net", "ipc", "uts", "user")
    found = execute(f"readlink {' '.join(f'/proc/self/ns/{kind}' for kind in kinds)}").stdout.decode().split()
    ours = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds]
    return [kind for kind, theirs, mine in zip(kinds, found or ours, ours, strict=True) if theirs == mine]


def selftest(as_json: bool) -> int:
    """Runs all attacks and prints what came of them: 0 where all were contained, 1 where not, 2 where none could be run."""
    missing = unavailable()
    if not missing and not shutil.which("perl", path="/usr/bin"):
        missing = "perl is not installed, and some attacks are written in it: apt-get install perl-base"
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    if common := shared():
        outcomes = [
            Outcome("namespaces", False, f"shared with the host: {', '.join(common)}; no attack was started")
        ]
    else:
        outcomes = []
        with Host() as host:
            for attack in attacks():
                outcomes.append(run(attack, host))
                if not as_json:
                    print(_line(outcomes[-1]), flush=True)
    held = sum(outcome.contained for outcome in outcomes)
    if as_json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print(
            f"{held} of {len(outcomes)} attacks contained, as {'root' if os.geteuid() == 0 else 'an ordinary user'}"
        )
    return 0 if held == len(outcomes) else 1


def _line(outcome: Outcome) -> str:
    return f"{'contained' if outcome.contained else 'NOT CONTAINED':<14} {outcome.name:<48} {outcome.detail}"


def main(argv: Sequence[str]) -> int:
    """The command line of `envs.verify.sandbox`."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.verify.sandbox", description="Attacks the sandbox that commands are executed in."
    )
    parser.add_argument(
        "--selftest",
        action="store_true",
        required=True,
        help="run the attacks; exit status 0 where all were contained",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON and nothing else: a list of name, contained, detail"
    )
    return selftest(parser.parse_args(argv).json)
