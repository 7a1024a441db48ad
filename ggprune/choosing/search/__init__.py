"""Methods that measure plans on the model."""
