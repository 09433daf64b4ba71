"""Opens a file that a person named, or says in one line why it cannot be read."""

from __future__ import annotations

import stat
from io import BufferedReader
from pathlib import Path

from envs.types import InputError

BOM = b"\xef\xbb\xbf"


def open_file(path: Path, shown: str, most_bytes: int) -> BufferedReader:
    """The open file, in binary.

    Args:
        shown: what messages begin with: the file's name, or the flag and the name.
        most_bytes: a larger file is refused.

    Raises:
        FileNotFoundError: nothing is there; only the caller knows what to suggest.
        InputError: it is a folder, a device or a pipe, too large, or cannot be read.
    """
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise InputError(f"{shown}: a folder, not a file: give the path of a file in it")
        if not stat.S_ISREG(about.st_mode):  # reading a device or a named pipe may never end
            raise InputError(f"{shown}: not a regular file: save the text in a file and give its path")
        if about.st_size > most_bytes:
            allowed = f"{most_bytes / 2**20:,.0f} MiB are allowed"
            raise InputError(f"{shown}: too large ({about.st_size / 2**20:,.1f} MiB, {allowed}): split it")
        return path.open("rb")
    except NotADirectoryError:
        raise FileNotFoundError(str(path)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror}): check the path") from None
    except ValueError as error:  # a zero byte in the path
        raise InputError(f"{shown!r}: cannot be read ({error}): check the path") from None


def not_utf8(
    shown: str, line: int, error: UnicodeDecodeError, fix: str = "save the file as UTF-8"
) -> InputError:
    """The message for bytes that are not text."""
    byte = error.object[error.start]
    return InputError(f"{shown}:{line}: not UTF-8 (byte 0x{byte:02x}): {fix}")
