"""``clipmill cluster doctor``: which parts a cluster has, and what an installation lacks."""
