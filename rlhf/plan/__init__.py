"""What a stage will need in memory: measured on a copy of the model with few layers, and extrapolated."""
