"""Which experts stay: scores, budgets, search, plans."""
