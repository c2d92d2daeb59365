"""Numerical self-check: compares fast ways of running a network with eager float32."""
