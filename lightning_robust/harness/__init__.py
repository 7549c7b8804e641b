"""What techniques share about a Trainer: quiet evaluation, batches, schedules, checkpoints, logging."""
