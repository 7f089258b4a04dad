"""What runs beside a server: Prometheus' rules, Grafana's dashboards, all three together in containers."""
