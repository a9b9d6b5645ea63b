"""What cannot be planned."""

from pipelines.ner.errors import UserError


class PlanError(UserError):
    """A plan that cannot be made: of this model, within these limits, or on this cluster."""
