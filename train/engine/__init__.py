"""The training loop, the SAEs in training, their optimizer and schedule, the feed of batches, the metrics."""
