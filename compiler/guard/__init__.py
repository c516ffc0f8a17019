"""What a lossy pass may cost: the metric of the task, the budget, where damage arises, and going back on it."""
