"""One door per device: who computes selections, sparse products and optimizer steps, and how."""
