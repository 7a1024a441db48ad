"""Requantizing and importance matrices."""
