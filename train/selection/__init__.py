"""Pre-activations as the object that selection rules query, and a plain definition of every rule."""
