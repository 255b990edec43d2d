"""Tabletop manipulation with a Franka Panda in PyBullet."""
