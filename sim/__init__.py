"""Simulated environments, scripted demonstrators, rollouts."""
