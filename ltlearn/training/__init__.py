"""How both stages train: the loop, schedules, checkpoints, logs, features and trajectories."""
