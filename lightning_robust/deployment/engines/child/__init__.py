"""The process that an engine is built and run in."""
