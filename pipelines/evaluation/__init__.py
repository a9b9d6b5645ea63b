"""Scores against untouched gold, and the reports that show them."""
