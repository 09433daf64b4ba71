"""The policy: any Hugging Face causal language model with a LoRA adapter, and the embedded model."""
