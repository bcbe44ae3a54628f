"""Traces of a real kernel, judged by the rules of page counts."""
