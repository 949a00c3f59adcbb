"""Find images that are likely mislabelled, duplicated or foreign to their class."""
