"""Helpers that several techniques share: structures of tensors, logging to any logger, refusals by strategy."""
