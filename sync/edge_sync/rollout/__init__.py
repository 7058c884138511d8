"""Waves of a rollout, what is known of one, and what follows. Pure: no tables, no clock."""
