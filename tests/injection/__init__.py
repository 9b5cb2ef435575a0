"""Systematic fault injection: a system call fails, or a signal comes, at each single place of a server's life."""
