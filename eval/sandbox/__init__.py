"""Runs model-written code where it can harm nothing. Knows Linux, not tasks."""
