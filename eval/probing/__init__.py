"""What is found out about variants while they serve: probes, evidence, verdicts."""
