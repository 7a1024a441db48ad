"""Text to read: files, data sets, recipes; chat templates."""
