"""The KServe predictor: codecs, batching, models."""
