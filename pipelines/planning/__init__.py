"""What a run will need of memory, time and money, and what a cluster has: plans with reasons."""
