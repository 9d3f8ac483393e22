"""Components that prepare datasets: sharding, captions, scores, selections."""
