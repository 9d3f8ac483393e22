"""Alerts, recording rules and dashboards, made from the metrics that ``telemetry.py`` names."""
