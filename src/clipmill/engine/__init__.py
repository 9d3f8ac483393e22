"""The training loop: objectives, optimizer groups, schedules, exact resume."""
