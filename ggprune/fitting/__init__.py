"""The best file of a size: how many experts stay, and which type each tensor gets."""
