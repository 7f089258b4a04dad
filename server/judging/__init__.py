"""What is found out about variants by asking the engine in this process; what it amounts to is eval's."""
