"""One thin file per pipeline: builds the pieces, defines the step, calls the loop."""
