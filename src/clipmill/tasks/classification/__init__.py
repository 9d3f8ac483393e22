"""Image classification on ImageNet's folder layout."""
