"""The devices that a step can run on: one folder for each kind of device."""
