"""HTML reports: encoders compared, a dataset's samples, training runs, sweeps, attention."""
