"""The rules, one table a file."""
