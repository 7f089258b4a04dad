"""Builds Grafana's dashboards. They are committed in deploy/grafana/dashboards; a test compares the two."""
