"""Bridge from a policy to a real arm."""
