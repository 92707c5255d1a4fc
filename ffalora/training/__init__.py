"""One step of training, private or plain: batches, passes, clipped sums, the update, and what is refused."""
