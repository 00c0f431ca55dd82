"""Training dictionaries: objectives, schedules, dead-latent counts, the loop, and resuming it exactly."""
