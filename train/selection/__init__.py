"""What a selection rule may ask of pre-activations, and the plain definition of every rule."""
