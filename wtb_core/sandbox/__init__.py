"""Processes for user code: the warm zygote, one child per attempt, and their supervisor."""
