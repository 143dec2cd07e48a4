"""Students: where they start, how they are adapted, stored and shared."""
