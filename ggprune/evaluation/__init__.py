"""What a plan or a pruned model costs, measured; what models answer, checked."""
