"""The command line of a sandbox: bubblewrap, its options, and the driver that it runs as process 1."""

from __future__ import annotations

import os
from pathlib import Path

NOBODY = 65534  # the user and the group of every command
DRIVER = Path(__file__).with_name("driver.sh").read_text(encoding="utf-8")
OPTIONS = f"""
    --unshare-user --uid {NOBODY} --gid {NOBODY} --disable-userns
    --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --hostname sandbox
    --new-session --die-with-parent --as-pid-1 --cap-drop ALL
    --clearenv --setenv PATH /usr/bin:/bin --setenv HOME /box --setenv LC_ALL C.UTF-8 --setenv TZ UTC
    --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/sbin /sbin --symlink usr/lib /lib
    --symlink usr/lib64 /lib64 --ro-bind-try /etc/alternatives /etc/alternatives
    --proc /proc --size 4096 --perms 0555 --tmpfs /proc/1 --remount-ro /proc/1
    --dev /dev --size 1048576 --tmpfs /dev/shm --remount-ro /dev
    --perms 1777 --size 4194304 --tmpfs /tmp
    --perms 0755 --size 16777216 --tmpfs /box --chdir /box --remount-ro /
""".split()
# As root, bubblewrap's --uid is not enough: it changes nothing for the host's files.
DROP_ROOT = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--"]


def command_line(bwrap: str, filter_fd: int, tree_fd: int, give_up: float, command: bytes) -> list[bytes]:
    """What to start.

    Args:
        bwrap: path of bubblewrap.
        filter_fd: descriptor of the system-call filter.
        tree_fd: descriptor of the archive with the file tree.
        give_up: seconds after which the driver stops by itself.
    """
    words = [bwrap, "--seccomp", str(filter_fd), *OPTIONS, "--"]
    words += ["/bin/bash", "--noprofile", "--norc", "-c", DRIVER, "driver", str(tree_fd), f"{give_up:.1f}"]
    if os.geteuid() == 0:
        words = DROP_ROOT + words
    return [*map(os.fsencode, words), command]
