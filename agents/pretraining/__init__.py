"""What `agents.pretrain` is made of: its noisy text, its tokenizer and weights, its card."""
