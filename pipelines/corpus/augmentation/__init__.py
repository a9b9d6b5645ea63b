"""Training records changed in ways that keep their gold: how, how often, and what becomes of them."""
