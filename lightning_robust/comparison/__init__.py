"""Finished runs side by side: read, named, compared, shown on one page."""
