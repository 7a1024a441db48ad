"""What a plan or a pruned model costs, measured."""
