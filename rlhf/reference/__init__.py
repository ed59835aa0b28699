"""The shared reference-policy constraint: where the reference comes from, and how far the policy may be from it."""
