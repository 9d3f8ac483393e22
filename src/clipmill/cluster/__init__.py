"""What clipmill asks of a cluster: training jobs, data workflows, endpoints and their rollout."""
