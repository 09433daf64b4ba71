"""Whether the Hugging Face hub is there, asked once: its own client tries for half a minute."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from envs.messages import one_line

WAIT = 10  # seconds for an answer


def find_hub(*names: str) -> None:
    """Fails at once where a model has to come from the hub and the hub cannot be reached.

    Any answer of the hub will do, so every error means that there was none. Its class depends on the client.

    Args:
        names: the model's folder or name; further ones if it may have several. One that is here is enough.

    Raises:
        OSError: the hub cannot be reached, and why.
        ValueError: a name that the hub cannot have.
    """
    for name in names:
        if Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    try:
        get_session().head(constants.ENDPOINT, timeout=WAIT)
    except Exception as error:
        reason = one_line(error)
        raise OSError(f"it is no folder, and the Hugging Face hub cannot be reached ({reason})") from error
