"""The paper's tables as functions, and the miniature of each that runs on a CPU."""
