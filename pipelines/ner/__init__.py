"""The core: what the model answers. torch and transformers only; no Ray, no corpus files, no HTTP."""
