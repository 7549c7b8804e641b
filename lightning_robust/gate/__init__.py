"""The gate: measured numbers held against a budget, and what a pipeline reads of it. Needs neither torch nor numpy."""
