"""Who runs a graph: one small class for each engine, builds in a child process, their cache."""
