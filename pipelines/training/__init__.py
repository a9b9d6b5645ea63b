"""Fine-tuning: the Ray-free training loop, and the Ray Train trainer around it."""
