"""Eighteen small functions, each module with one bug in it."""
