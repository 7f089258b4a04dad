"""How fast a server is, and how much memory it takes: workloads W1 to W4 on an OpenAI-style endpoint."""
