"""Smaller, faster models that are as good as needed: which parts go, and whether what is left is good enough."""
