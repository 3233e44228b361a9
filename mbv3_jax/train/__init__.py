"""Training: losses, schedules, optimizers, state, the step, checkpoints, the loop."""
