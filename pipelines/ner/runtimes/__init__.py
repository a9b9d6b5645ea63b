"""How emissions are computed: interchangeable, measured, and equal within a stated tolerance."""
