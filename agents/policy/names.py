"""Short names of models, and the models that ship here."""

from __future__ import annotations

from pathlib import Path

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED = {
    "embedded": Path(__file__).parent / "embedded",
    "embedded-hard": Path(__file__).parent / "embedded_hard",
}
# Short name -> a folder, or a name on the Hugging Face hub.
ALIASES = {
    **{name: str(folder) for name, folder in EMBEDDED.items()},
    "smollm2": SMOLLM2,
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.2",
}
