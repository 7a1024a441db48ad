"""Text, the run over it, and the statistics it gives."""
