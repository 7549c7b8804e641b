"""A parity report for readers: tables, figures, one page."""
