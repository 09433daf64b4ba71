"""A file tree, and the tar archives in which it travels into a sandbox and back. Nothing is unpacked here."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

MTIME = 1_700_000_000  # seconds since 1970: time of last change of what is laid out, by default
BLOCK = tarfile.BLOCKSIZE  # bytes of a header; contents are filled up to a multiple
LONG_NAME, LONG_TARGET, HARD_LINK = b"L", b"K", b"1"
TYPES = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
KINDS: dict[bytes, Literal["file", "directory", "link"]] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
}


@dataclass(frozen=True)
class Entry:
    """One name in a file tree.

    Attributes:
        kind: `other` is a pipe, a device and the like: it can come back, but cannot be handed in.
        mode: permission bits, such as 0o644.
        content: bytes of a file, target of a link.
        links: how many names of the tree are this same file; 1 in a tree that is handed in.
        mtime: time of last change, in seconds since 1970. It does not come back and is not compared.
    """

    kind: Literal["file", "directory", "link", "other"]
    mode: int
    content: bytes = b""
    links: int = 1
    mtime: int = field(default=MTIME, compare=False)


Tree = Mapping[str, Entry]  # relative path -> entry; bytes of a path that are not UTF-8 are surrogate escapes


def pack(tree: Tree) -> bytes:
    """The tree as an archive.

    Raises:
        ValueError: a path is absolute, empty or holds `..` or a NUL, or an entry is of kind `other`.
    """
    parts = [_header("./", Entry("directory", 0o755))]
    for path, entry in tree.items():
        if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise ValueError(f"a path of a tree must stay inside it: {path!r}")
        if entry.kind not in TYPES:
            raise ValueError(f"{path!r}: only files, directories and links can be laid out")
        parts.append(_header(f"./{path}", entry))
        if entry.kind == "file":
            parts += [entry.content, bytes(-len(entry.content) % BLOCK)]
    parts.append(bytes(2 * BLOCK))
    return b"".join(parts)


def _header(name: str, entry: Entry) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = TYPES[entry.kind], entry.mode & 0o7777, entry.mtime
    if entry.kind == "link":
        info.linkname = entry.content.decode("utf-8", "surrogateescape")
    elif entry.kind == "file":
        info.size = len(entry.content)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def unpack(answer: bytes) -> dict[str, Entry] | None:
    """The tree in what the driver sent; None where it is broken or incomplete. Nothing of it is trusted.

    The driver sends an archive. Where it could not read everything, it sends what it could read, then the
    modes that stood in the way, and then a second archive.
    """
    try:
        tree, end = _read(answer)
        end += -end % tarfile.RECORDSIZE  # tar fills up its last record
        if len(answer) <= end:
            return tree
        modes, start = _read_modes(answer, end)
        tree, end = _read(answer[start:])
        if len(answer) - start > end + -end % tarfile.RECORDSIZE:
            return None  # more follows: the second archive is not complete either
        for path, mode in modes.items():
            if path in tree:
                tree[path] = replace(tree[path], mode=mode)
    except (ValueError, LookupError):
        return None
    return tree


def _read(archive: bytes) -> tuple[dict[str, Entry], int]:
    """The tree in an archive of GNU tar's own format, and where the archive ends.

    tarfile would take four times as long, and would take more formats than the one that is sent.

    Raises:
        ValueError, LookupError: it is cut off, or is no such archive.
    """
    tree: dict[str, Entry] = {}
    names_of: dict[str, list[str]] = {}  # first name of a file -> all its names, where it has several
    long_name = long_target = b""
    offset = 0
    while archive[offset] != 0:
        header = archive[offset : offset + BLOCK]
        size = _octal(header[124:136])
        content = archive[offset + BLOCK : offset + BLOCK + size]
        if len(header) < BLOCK or len(content) < size:
            raise ValueError("cut off")
        offset += BLOCK + size + -size % BLOCK

        kind = header[156:157]
        if kind == LONG_NAME:  # of the member that follows
            long_name = content.rstrip(b"\0")
            continue
        if kind == LONG_TARGET:
            long_target = content.rstrip(b"\0")
            continue
        path = _path(long_name or header[:100])
        target = long_target or header[157:257].split(b"\0")[0]
        long_name = long_target = b""
        if kind == HARD_LINK:
            first = _path(target)
            tree[path] = tree[first]
            names_of.setdefault(first, [first]).append(path)
        elif path:
            if kind == tarfile.SYMTYPE:
                content = target
            tree[path] = Entry(KINDS.get(kind, "other"), _octal(header[100:108]), content)
    for names in names_of.values():
        for name in names:
            tree[name] = replace(tree[name], links=len(names))
    return tree, offset + 2 * BLOCK


def _octal(field: bytes) -> int:
    return int(field.rstrip(b" \0"), 8)


def _path(name: bytes) -> str:
    """A name in the archive as a path of the tree; empty for the root."""
    return os.fsdecode(name.split(b"\0")[0]).removeprefix("./").rstrip("/")


def _read_modes(answer: bytes, start: int) -> tuple[dict[str, int], int]:
    """A list of `mode path NUL` from `start` on, ended by one more NUL -> the modes, and where the list ends.

    Raises:
        ValueError: it is no such list.
    """
    end = answer.index(b"\0\0", start - 1)  # the list may be empty; what is before it ends with NULs
    modes = {}
    for line in answer[start:end].split(b"\0"):
        mode, _, path = line.partition(b" ")
        if path:
            modes[os.fsdecode(path)] = int(mode, 8)
    return modes, end + 2
