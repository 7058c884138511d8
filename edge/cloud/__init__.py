"""Asking a pool in the cloud: its client, its circuit breaker, its prices."""
