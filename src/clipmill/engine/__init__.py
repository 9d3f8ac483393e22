"""The training loop: objectives, optimiser groups, schedules, exact resume."""
