"""The methods of choosing experts, one module a method or family."""
