"""What an operator is told of: once for each episode."""
