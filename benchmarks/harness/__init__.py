"""Run what is compared in processes that take turns; measure, compare outputs, write results."""
