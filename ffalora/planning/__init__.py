"""What to ask of a run before it is started: batch and steps from the budget and the time there is."""
