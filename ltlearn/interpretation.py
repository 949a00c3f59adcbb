"""Interpretation of a learner: top losses, confusion and scores by shot group."""
