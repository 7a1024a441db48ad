"""The whole job and its stages, for programs; the command line and batches call the same."""
