"""ggprune: prune the experts of mixture-of-experts GGUF models, offline, still quantized."""
