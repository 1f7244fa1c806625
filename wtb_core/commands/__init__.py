"""The commands of `wtb`, one module a noun."""
