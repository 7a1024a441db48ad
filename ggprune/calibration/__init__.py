"""The run over text, and the statistics it gives."""
