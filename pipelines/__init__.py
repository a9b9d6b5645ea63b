"""rayner: named entity recognition on Ray, from annotated corpus to labelled text."""
