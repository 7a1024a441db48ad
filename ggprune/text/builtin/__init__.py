"""The built-in prompts: calibration, held-out evaluation and generation probes (JSON Lines)."""
