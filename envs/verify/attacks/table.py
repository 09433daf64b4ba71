"""The attacks: a script each, and what is allowed to come of it."""

from __future__ import annotations

from dataclasses import dataclass

from envs.verify.attacks.checks import (
    Check,
    all_modes_zero,
    forgery_is_a_file,
    library_came_back,
    links_stay_links,
    nothing_more,
    odd_names_came_back,
    pipe_is_other,
    small_tree,
    status_only,
    unreadable_came_back,
)
from envs.verify.attacks.scripts import (
    MACHINE,
    all_refused_calls,
    call,
    calls,
    fails,
    machine_code,
    none_works,
    number,
)


@dataclass(frozen=True)
class Attack:
    """A script and what is allowed to come of it.

    Attributes:
        script: `@NAME@` stands for what the host plants, see `Host.words`.
        ended: how it may end.
        wall: seconds.
        greedy: whether memory and disk of the host are watched.
        check: what else must hold.
        refused: where it is not 0, no shell may run the script, and this is the exit status that says so.
        again: a second script, run in a sandbox of its own after the first, and judged as well.
        machine: the one kind of machine that can run it; empty for all.
    """

    name: str
    script: str
    ended: tuple[str, ...] = ("exited",)
    wall: float = 10.0
    greedy: bool = False
    check: Check = nothing_more
    refused: int = 0
    again: str = ""
    machine: str = ""


ANY = ("exited", "timeout", "killed", "output")

ATTACKS = [
    # --- processes that multiply, stay, or turn on others
    Attack("fork bomb", "echo tried; :(){ :|:& };:; sleep 300.@TAG@", ended=ANY, wall=2, greedy=True),
    Attack(
        "fork bomb of session leaders",
        "echo tried; perl -e 'use POSIX; while (1) { fork; setsid() }'",
        ended=ANY,
        wall=2,
        greedy=True,
    ),
    Attack(
        "fork bomb that ignores signals",
        "echo tried; trap '' {1..64}; f() { f & f & wait; }; f; sleep 300.@TAG@",
        ended=ANY,
        wall=2,
    ),
    Attack(
        "a hundred daemons",
        "echo tried; for i in {1..100}; do setsid sleep 300.@TAG@ & done",
        ended=ANY,
        wall=2,
    ),
    Attack("daemon that holds the pipe", "sleep 300.@TAG@ & echo tried"),
    Attack("daemon that writes on", "(while echo x; do sleep 0.01; done) & echo tried"),
    Attack(
        "double-forked daemon",
        "(setsid bash -c 'setsid sleep 300.@TAG@ & exec sleep 300.@TAG@' </dev/null >/dev/null 2>&1 &)\n"
        "echo tried",
    ),
    Attack(
        "daemon that ignores signals",
        """perl -e '$SIG{$_} = "IGNORE" for keys %SIG; exit if fork; $0 = "300.@TAG@"; sleep 1 while 1'
        echo tried""",
    ),
    Attack("sleep without end", "echo tried; sleep 300.@TAG@", ended=("timeout",), wall=1),
    Attack("loop without end", "echo tried; while :; do :; done", ended=ANY),
    Attack(
        "loops without end that ignore signals",
        "echo tried; trap '' {1..64}; for i in {1..8}; do while :; do :; done & done; wait",
        ended=ANY,
        wall=3,
    ),
    Attack("shell replaced and detached", "echo tried; exec setsid -f sleep 300.@TAG@"),
    Attack("kill all processes", "echo tried; kill -9 -1; sleep 300.@TAG@", ended=ANY, wall=2),
    Attack("kill process 1", "for s in {1..64}; do kill -$s 1; done 2>/dev/null; echo tried"),
    Attack("kill the waiting shell", "echo tried; kill -9 $PPID; sleep 300.@TAG@", ended=ANY, wall=2),
    Attack(
        "kill by number",
        "echo tried; for ((p = 2; p < 40000; p++)); do (( p == $$ )) || kill -9 $p; done 2>/dev/null",
        ended=ANY,
    ),
    Attack("stop all processes", "echo tried; kill -STOP -1; sleep 300.@TAG@", ended=ANY, wall=1),
    Attack("signal the planted process", none_works("kill -9 @DECOY@")),
    Attack(
        "more priority",
        none_works(
            "renice -n -5 $$",
            "nice -n -5 true 2>&1 | grep -qv cannot",
            "chrt -f 1 true",
            "chrt -r 1 true",
        ),
    ),
    Attack("realtime by system call", calls(call("sched_setscheduler", "0, 1, pack(q(i), 1)"))),
    Attack(
        "higher limits",
        none_works(
            "ulimit -Hu 4096",
            "ulimit -Hv unlimited",
            "ulimit -Ht 600",
            "ulimit -Hf unlimited",
            "prlimit --pid $$ --nproc=4096:4096",
        ),
    ),
    # --- memory
    Attack(
        "memory of one process",
        """perl -e '$x = "x" x (1 << 30); print "BREACH\\n"'; echo tried""",
        greedy=True,
    ),
    Attack(
        "memory of many processes",
        """echo tried
        for i in {1..28}; do perl -e 'push @x, "x" x (1 << 20) while 1' & done; sleep 300.@TAG@""",
        ended=ANY,
        wall=4,
        greedy=True,
    ),
    Attack(
        "shared memory of many processes",
        f"""echo tried
        for i in {{1..28}}; do perl -e 'open Z, "/dev/zero";
        $a = syscall({number("mmap")}, 0, 200 << 20, 3, 33, -1, 0);
        syscall({number("read")}, fileno Z, $a, 200 << 20); sleep 300' & done; sleep 300.@TAG@""",
        ended=ANY,
        wall=3,
        greedy=True,
    ),
    Attack("stack", "echo tried; f() { f; }; f", ended=ANY, greedy=True),
    Attack(
        "System V shared memory",
        calls(call("shmget", "0, 4096, 0x380"), call("msgget", "0, 0x380")),
    ),
    Attack("anonymous memory file", calls(call("memfd_create", "q(x), 0"))),
    Attack(
        "socket buffers",
        """echo tried
        perl -e 'use Socket; for (1..28) { socketpair($a[$_], $b[$_], AF_UNIX, SOCK_DGRAM, 0);
        $a[$_]->blocking(0);
        1 while syswrite($a[$_], "x" x 60000) }'""",
        ended=ANY,
        greedy=True,
    ),
    # --- disk
    Attack(
        "fill /box",
        "echo tried; for i in {1..99}; do head -c 100M /dev/zero > /box/$i; done 2>/dev/null",
        ended=ANY,
        greedy=True,
        check=small_tree,
    ),
    Attack(
        "fill /tmp",
        "echo tried; for i in {1..99}; do head -c 100M /dev/zero > /tmp/$i; done 2>/dev/null",
        ended=ANY,
        greedy=True,
    ),
    Attack(
        "fill /dev/shm",
        "echo tried; for i in {1..99}; do head -c 100M /dev/zero > /dev/shm/$i; done 2>/dev/null",
        ended=ANY,
        greedy=True,
    ),
    Attack(
        "files without number",
        """echo tried
        for d in /box /tmp /dev/shm; do perl -e 'open F, ">", "$ARGV[0]/$$.".$i++ while 1' $d & done; wait""",
        ended=ANY,
        greedy=True,
    ),
    Attack(
        "links without number",
        "echo tried; touch a; perl -e 'link q(a), qq(l$i) while ++$i < 3e6'",
        ended=ANY,
        greedy=True,
        check=small_tree,
    ),
    Attack(
        "sparse file",
        none_works("truncate -s 1T big", "truncate -s 32M big", "fallocate -l 32M big 2>/dev/null"),
    ),
    Attack(
        "sparse files",
        "echo tried; for i in {1..2000}; do truncate -s 16M $i; done",
        ended=ANY,
        greedy=True,
        check=small_tree,
    ),
    Attack(
        "deep directories",
        "echo tried; for i in {1..3000}; do mkdir d && cd -P d || break; done 2>/dev/null",
        ended=ANY,
        check=small_tree,
    ),
    Attack(
        "deep directories past the longest path",
        """echo tried; perl -e 'for (1..30000) { mkdir q(d) x 200; chdir q(d) x 200 or last }'""",
        ended=ANY,
    ),
    Attack(
        "enormous names",
        "echo tried; n=$(printf '%0250d' 0); for i in {1..5000}; do : > $n$i; done",
        ended=ANY,
        check=small_tree,
    ),
    # --- output
    Attack("endless output", "echo tried; yes", ended=("output",)),
    Attack("endless errors", "echo tried; yes >&2", ended=("output",)),
    Attack("endless output without a line", "echo tried; cat /dev/zero", ended=("output",)),
    Attack("slow endless output", "echo tried; while echo x; do sleep 0.1; done", ended=("timeout",), wall=1),
    Attack("closed output", "echo tried; exec >&- 2>&-; sleep 300.@TAG@", ended=("timeout",), wall=1),
    Attack("waiting for input", "cat; read -r x; echo tried"),
    # --- the tree that comes back
    Attack(
        "links to the host's files",
        "ln -s @FILE@ l; ln -s /etc/shadow s; ln -s / r; ln -s ../../../../@FILE@ u; echo tried",
        check=links_stay_links,
    ),
    Attack(
        "pipes and sockets in the tree",
        "mkfifo p; perl -e 'use Socket; socket S, AF_UNIX, SOCK_STREAM, 0; bind S, sockaddr_un q(s)'\n"
        "echo tried",
        check=pipe_is_other,
    ),
    Attack(
        "directories without permissions",
        "mkdir -p a/b; echo x > a/b/f; chmod 000 a/b/f a/b a .; echo tried",
        check=unreadable_came_back,
    ),
    Attack(
        "names that are options",
        "touch -- '--checkpoint=1' '--checkpoint-action=exec=touch pwned' '-rf' $'a\\nb' $'\\xff'\n"
        "echo tried",
        check=odd_names_came_back,
    ),
    Attack(
        "forged archive",
        "mkdir x; tar --transform 's,^,../../../@FILE@,' -Pcf f x\n"
        "cat f f > $'0 ..\\n777 f'; chmod 000 *; echo tried",
        check=forgery_is_a_file,
    ),
    Attack(
        "forged answer",
        none_works(
            "echo 'code 0' > /proc/1/fd/0", "exec 9<>/proc/1/mem", "ls /proc/1/fd", "cat /proc/1/environ"
        ),
    ),
    Attack(
        "the working directory replaced",
        none_works("mv /box /tmp/x", "rmdir /box", "ln -sfn / /box/../box2"),
    ),
    Attack(
        "thousands of unreadable files",
        "echo tried; for i in {1..17000}; do :>$i; done; chmod 000 -- *",
        ended=ANY,
        wall=3,
        check=all_modes_zero,
    ),
    Attack(
        "thousands of unreadable directories",
        "echo tried; perl -e 'for(1..17000){mkdir $_} chmod 0, 1..17000'",
        ended=ANY,
        wall=3,
        check=all_modes_zero,
    ),
    Attack(
        "unreadable directories in each other, beside thousands",
        """echo tried; perl -e 'mkdir $_ for 1..16000; for (1..99) { mkdir q(d); chdir q(d) }
        for (1..99) { chdir q(..); chmod 0, q(d) }'""",
        ended=ANY,
        wall=3,
    ),
    Attack(
        "unreadable directories past the longest path",
        """echo tried; perl -e 'for (1..99) { mkdir q(d) x 200; chdir q(d) x 200 }
        for (1..99) { chdir q(..); chmod 0, q(d) x 200 }'""",
        ended=ANY,
        wall=3,
        check=all_modes_zero,
    ),
    # --- the exit status
    Attack(
        "forged status of thousands of digits",
        "echo tried; printf '1%.0s' {1..5000} > /proc/$PPID/fd/1; echo > /proc/$PPID/fd/1; sleep 1",
        ended=("exited", "killed"),
        check=status_only(0),
    ),
    Attack(
        "forged status beyond all numbers",
        "echo tried; echo 99999999999999999999999 > /proc/$PPID/fd/1; sleep 1",
        ended=("exited", "killed"),
        check=status_only(0),
    ),
    Attack(
        "forged status of success",
        "echo tried; for said in 0 'code 0' done; do echo $said > /proc/$PPID/fd/1; done; sleep 1; exit 7",
        ended=("exited", "killed"),
        check=status_only(7),
    ),
    Attack(
        "forged end, and the waiting shell killed",
        "echo tried; echo done > /proc/$PPID/fd/1; kill -9 $PPID; sleep 300.@TAG@",
        ended=ANY,
        wall=3,
        check=status_only(137),
    ),
    Attack(
        "forged status without end",
        "echo tried; yes | tr -d '\\n' > /proc/$PPID/fd/1; sleep 300.@TAG@",
        ended=ANY,
        wall=3,
        check=status_only(),
    ),
    # --- the host's files
    Attack(
        "read the planted file",
        none_works("cat @FILE@", "cat /proc/self/root@FILE@", "ls @FOLDER@"),
    ),
    Attack(
        "write the planted file",
        none_works(
            "echo x > @FILE@", "touch @FOLDER@/new", "rm -f @FILE@ && [[ ! -e @FILE@ && -e @FOLDER@ ]]"
        ),
    ),
    Attack(
        "search for the planted file",
        "find / -path /proc -prune -o -name @NAME@ -print 2>/dev/null | grep . && echo BREACH; echo tried",
        wall=60,
    ),
    Attack(
        "escape by ..",
        none_works("cat ../../../../../../..@FILE@", "cd /proc/self/cwd/../../.. && cat .@FILE@"),
    ),
    Attack(
        "escape through /proc",
        "for p in /proc/[0-9]*; do "
        + fails("cat $p/root@FILE@", "cat $p/cwd/../..@FILE@")
        + "; done; echo tried",
    ),
    Attack(
        "home, users and passwords",
        none_works("cat /etc/shadow", "cat /etc/passwd", "ls /root", "ls /home", "ls @HOME@"),
    ),
    Attack(
        "write where programs are",
        none_works(
            "touch /x",
            "touch /usr/x",
            "touch /usr/bin/x",
            "touch /usr/lib/x",
            "touch /bin/x",
            "touch /etc/x",
            "touch /dev/x",
            "touch /proc/x",
        ),
    ),
    Attack(
        "block devices and memory",
        none_works("cat /dev/[shv]d? | head -c 1 | grep -q .", "head -c 1 /dev/mem", "head -c 1 /proc/kcore"),
    ),
    Attack(
        "kernel messages",
        fails("dmesg", "head -c 1 /dev/kmsg", "head -c 1 /proc/kmsg")
        + "\n"
        + calls(call("syslog", "10, 0, 0")),
    ),
    Attack("make devices", none_works("mknod b b 8 0", "mknod c c 1 1", "mknod /tmp/c c 1 5")),
    Attack("file handles", calls(call("open_by_handle_at", "-100, pack(q(IiQ), 8, 1, 2), 0"))),
    Attack("secrets in the environment", "env; set; export -p; cat /proc/[0-9]*/environ; echo tried"),
    Attack(
        "open descriptors",
        "for ((f = 3; f < 256; f++)); do cat <&$f; cat /proc/self/fd/$f; done 2>/dev/null; echo tried",
    ),
    Attack(
        "command lines of others",
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c -- @OTHER@ | grep -qx 0 || echo BREACH\n"
        "echo tried",
    ),
    # --- the kernel's switches
    Attack(
        "switches in /proc",
        none_works(
            "echo b > /proc/sysrq-trigger",
            "echo '|/bin/true' > /proc/sys/kernel/core_pattern",
            "echo 1 > /proc/sys/vm/drop_caches",
            "echo x > /proc/sys/kernel/hostname",
            "echo /bin/true > /proc/sys/kernel/modprobe",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
        ),
    ),
    Attack(
        "spared when memory is short",
        none_works("echo -1000 > /proc/self/oom_score_adj", "echo 0 > /proc/self/loginuid"),
    ),
    Attack(
        "cores piped to a program",
        "grep -q 'core file size *1 *1 ' /proc/self/limits || echo BREACH\n"
        "bash -c 'kill -SEGV $$'; ls; echo tried",
    ),
    Attack(
        "control groups",
        none_works(
            "ls /sys/fs/cgroup",
            "mount -t cgroup2 none /tmp",
            "mount -t cgroup none /tmp",
            "echo 1 > /sys/x",
        ),
    ),
    Attack(
        "host name",
        fails("hostname x", "echo x > /proc/sys/kernel/hostname")
        + "\n"
        + calls(call("sethostname", "q(x), 1")),
    ),
    Attack("clock", fails("date -s 2000-01-01") + "\n" + calls(call("settimeofday", "0, 0"))),
    Attack(
        "swap, modules, kexec, reboot",
        calls(call("swapon"), call("init_module"), call("kexec_load"), call("reboot")),
    ),
    # --- more rights
    Attack(
        "become root",
        """perl -e '$< = $> = 0; print "BREACH\\n" if !$< || !$>'
        id -u | grep -qx 0 && echo BREACH; echo tried""",
    ),
    Attack(
        "programs that run as root",
        fails("su -c true", "sudo -n true", "newgrp root -c true")
        + "\ngrep -q 'NoNewPrivs:.1' /proc/self/status && echo tried",
    ),
    Attack(
        "capabilities",
        "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | grep -v 0000000000000000 && echo BREACH\n"
        "echo tried",
    ),
    Attack(
        "change owners",
        none_works("touch f && chown 0 f", "touch g && chgrp 0 g", "chown 0 /usr"),
    ),
    Attack(
        "setuid files",
        "cp /usr/bin/id x; chmod 6755 x\n"
        "./x -u | grep -qx 0 && echo BREACH; ./x -G | grep -w 0 && echo BREACH; echo tried",
    ),
    Attack(
        "user namespaces",
        fails("unshare -Ur true", "unshare -U true") + "\n" + calls(call("unshare", "0x10000000")),
    ),
    Attack(
        "namespaces by clone",
        calls(call("clone", "0x10000011, 0, 0, 0, 0"), call("clone3", "q(x) x 88, 88")),
    ),
    Attack(
        "namespaces of others",
        fails("nsenter -t 1 -m true", "nsenter -t $PPID -U true") + "\n" + calls(call("setns", "0, 0")),
    ),
    Attack(
        "mount",
        none_works(
            "mount -t tmpfs x /tmp",
            "mount --bind / /tmp",
            "mount -o remount,rw /usr",
            "umount -l /box",
            "umount /proc/1",
        ),
    ),
    Attack(
        "mount by the new calls",
        calls(call("fsopen", "q(tmpfs), 0"), call("open_tree", "-100, q(/), 1"), call("statmount")),
    ),
    Attack(
        "change the root",
        fails("chroot / true") + "\n" + calls(call("chroot", "q(/)"), call("pivot_root", "q(/), q(/)")),
    ),
    Attack(
        "trace processes",
        calls(call("ptrace", "0, 0, 0, 0"), call("ptrace", "16, getppid, 0, 0")),
    ),
    Attack(
        "memory of other processes",
        calls(call("process_vm_readv", "getppid, 0, 0, 0, 0, 0"), call("kcmp", "$$, getppid, 0, 0, 0")),
    ),
    Attack(
        "kernel keyring",
        calls(call("add_key", "q(user), q(x), q(y), 1, -2"), call("keyctl", "0, -3, 1")),
    ),
    Attack("io_uring", calls(call("io_uring_setup", "4, $x", "$x = qq(\\0) x 120;"))),
    Attack(
        "programs in the kernel",
        calls(call("bpf", "0, $x, 72", "$x = pack(q(L4), 2, 4, 4, 1) . qq(\\0) x 56;")),
    ),
    Attack(
        "performance counters",
        call("perf_event_open", "$x, 0, -1, -1, 0", "$x = pack(q(LLQ), 1, 112, 0) . qq(\\0) x 96;")
        + "; echo tried",
    ),
    Attack("page faults in user space", calls(call("userfaultfd", "1"))),
    Attack("another personality", calls(call("personality", "0x0040000"))),
    Attack("every denied system call", all_refused_calls()),
    Attack(
        "keys typed into a terminal",
        """perl -e 'open T, "+<", "/dev/ptmx";
        for ($f = 0; $f < 5; $f++) { open F, "+<&=$f" or next; $c = "x";
        print "BREACH\\n" if ioctl F, 0x5412, $c }
        open F, "+<", "/dev/tty" and print "BREACH: tty\\n"'; echo tried""",
    ),
    # --- the network
    Attack("the host's loopback", none_works("exec 3<>/dev/tcp/127.0.0.1/@PORT@ && cat <&3")),
    Attack(
        "other machines",
        none_works("exec 3<>/dev/tcp/192.0.2.1/80", "exec 3<>/dev/udp/192.0.2.1/53"),
        wall=3,
    ),
    Attack(
        "the host's abstract socket",
        """perl -e 'use Socket; socket S, AF_UNIX, SOCK_STREAM, 0;
        print "BREACH\\n" if connect S, pack("Sa*", 1, "\\0@ABSTRACT@")'; echo tried""",
    ),
    Attack("the host's sockets in files", none_works("ls /run/*", "ls /var/run/*")),
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
        "for d in /box /tmp /dev/shm; do echo 'echo BREACH' > $d/.bashrc; cp $d/.bashrc $d/left; done\n"
        "echo tried",
        again="ls -A /box /tmp /dev/shm | grep -E 'left|bashrc' && echo BREACH\n"
        "set -o history; history; echo tried",
    ),
    Attack(
        "a library in front of all others",
        "cp /usr/lib/*/libc.so.6 x.so; echo 'echo BREACH' > e\n"
        "LD_PRELOAD=/box/x.so BASH_ENV=/box/e ENV=/box/e su -c true; echo tried",
        check=library_came_back,
    ),
    Attack("32-bit system calls", machine_code("b814000000 cd80"), machine="x86_64"),  # getpid by int 0x80
    Attack("x32 system calls", machine_code("b827000040 0f05"), machine="x86_64"),
]


def attacks_here() -> list[Attack]:
    """Those that this machine can run."""
    return [attack for attack in ATTACKS if attack.machine in ("", MACHINE)]
